# SPDX-License-Identifier: MIT
"""A client of CRIU's RPC: ``criu swrk``, messages from the distribution's pycriu.

pycriu's own client knows no notifications and drops CRIU's error text (reference/criu.md D), so only its messages
are used. Importing the package would cost 105 ms of downtime in the new kernel: ``rpc_pb2`` alone is loaded.
"""

import importlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from upgrade.errors import DependencyMissing, UpgradeError
from upgrade.process import environment, missing

MESSAGE_BYTES = 1 << 20
ROLLBACK_S = 120
# It says so of each task that has none, and goes on (criu/page-xfer.c, open_page_local_xfer()).
NO_PARENT = "No parent image found"

Notify = Callable[[str, int], bool]
"""Called with a notification's name and process id; the answer goes to CRIU."""


class CriuError(UpgradeError):
    """CRIU said no. ``message`` is the first error of its log, as it sends it."""


@dataclass(frozen=True, slots=True)
class CriuVersion:
    """The version of the installed CRIU."""

    major: int
    minor: int
    sublevel: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" + (f".{self.sublevel}" if self.sublevel else "")


def messages() -> ModuleType:
    """Return pycriu's ``rpc_pb2``.

    :raises DependencyMissing: if pycriu is not installed
    """
    name = "pycriu.rpc_pb2"
    if name in sys.modules:
        return sys.modules[name]
    path = _pycriu() / "rpc_pb2.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise DependencyMissing("has no rpc_pb2", subject="pycriu", hint="apt-get install python3-pycriu")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def pagemap_messages() -> ModuleType:
    """Return pycriu's ``pagemap_pb2``.

    :raises DependencyMissing: if pycriu is not installed
    """
    return image_messages("pagemap_pb2")


def image_messages(name: str) -> ModuleType:
    """Return one of pycriu's modules of image messages, under the name that pycriu itself gives it.

    :raises DependencyMissing: if pycriu is not installed
    """
    images = str(_pycriu() / "images")
    if images not in sys.path:  # as pycriu.images does: its modules import each other by their bare names
        sys.path.append(images)
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise DependencyMissing(
            f"has no {name}: {e}", subject="pycriu", hint="apt-get install python3-pycriu"
        ) from e


def _pycriu() -> Path:
    package = importlib.util.find_spec("pycriu")
    if package is None or not package.submodule_search_locations:
        raise DependencyMissing("not installed", subject="pycriu", hint="apt-get install python3-pycriu")
    return Path(package.submodule_search_locations[0])


class Criu:
    """One ``criu swrk`` process, good for one request."""

    def __init__(
        self,
        program: str = "criu",
        timeout_s: float | None = None,
        inherit: Sequence[int] = (),
        *,
        apart: bool = False,
    ) -> None:
        """Start it.

        :param inherit: descriptors of ours that it has under the same numbers
        :param apart: in a process group of its own, so that the terminal's Ctrl-C does not kill it: its tasks would
            be left as they are
        """
        self.rpc = messages()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.socket = ours
        self.socket.settimeout(timeout_s)
        try:
            self.process = subprocess.Popen(
                [program, "swrk", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *inherit],
                env=environment(),
                process_group=0 if apart else None,
            )
        except FileNotFoundError as e:
            ours.close()
            raise missing(program) from e
        finally:
            theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # CRIU takes the end of the connection for a failure answer and rolls back by itself.
        self.socket.close()
        try:
            self.process.wait(ROLLBACK_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def version(self) -> CriuVersion:
        """Ask for the version."""
        answer = self._call(self.rpc.criu_req(type=self.rpc.VERSION)).version
        return CriuVersion(answer.major_number, answer.minor_number, answer.sublevel)

    def tracks_memory(self) -> bool:
        """Ask whether a dump can leave out pages that did not change (the kernel's soft-dirty bits)."""
        request = self.rpc.criu_req(
            type=self.rpc.FEATURE_CHECK, features=self.rpc.criu_features(mem_track=True)
        )
        return bool(self._call(request).features.mem_track)

    def dump(self, options: Any, notify: Notify) -> None:
        """Dump a tree; returns after CRIU has ended its part, whatever ``notify`` answered."""
        self._call(self.rpc.criu_req(type=self.rpc.DUMP, opts=options), notify)

    def restore(self, options: Any, notify: Notify) -> int:
        """Restore a tree and return the process id of its root."""
        return int(self._call(self.rpc.criu_req(type=self.rpc.RESTORE, opts=options), notify).restore.pid)

    def _call(self, request: Any, notify: Notify | None = None) -> Any:
        self._send(request)
        while True:
            answer = self._receive()
            if answer.type != self.rpc.NOTIFY:
                break
            happy = notify(answer.notify.script, answer.notify.pid) if notify is not None else True
            self._send(self.rpc.criu_req(type=self.rpc.NOTIFY, notify_success=happy))
        if not answer.success:
            reason = answer.cr_errmsg.strip() or _errno_text(answer.cr_errno)
            raise CriuError(reason, subject="criu")
        return answer

    def _send(self, request: Any) -> None:
        try:
            self.socket.send(request.SerializeToString())
        except ConnectionError as e:
            raise self._ended() from e

    def _ended(self) -> CriuError:
        return CriuError(f"ended without an answer (status {self.process.wait()})", subject="criu")

    def _receive(self) -> Any:
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, MESSAGE_BYTES, 4)
        except TimeoutError as e:
            raise CriuError(f"no answer within {self.socket.gettimeout():.0f} s", subject="criu") from e
        except ConnectionError as e:  # it ended with our request unread
            raise self._ended() from e
        for fd in fds:  # orphan-pts-master: nobody asked for it
            os.close(fd)
        if not data:
            raise self._ended()
        answer = self.rpc.criu_resp()
        answer.ParseFromString(data)
        return answer


def _errno_text(errno: int) -> str:
    return os.strerror(errno) if errno else "failed without saying why"


def log_errors(log: Path, limit: int = 3) -> list[str]:
    """Return the first error lines of a CRIU log, without their time stamps."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return []
    errors = [line for line in lines if "Error (" in line and NO_PARENT not in line]
    return [line.partition(" ")[2].strip() for line in errors[:limit]]
