# SPDX-License-Identifier: MIT
"""The restore's side of the page server: whose memory comes on demand, and whether all of it has come.

The server is a unit of its own (``seamless-upgrade-pages.service``). It is started as soon as the session is known,
because its start would be downtime: until the frames can be read there are other things to wait for.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from memfs.samples import PAGE_BYTES
from upgrade import paths
from upgrade.engines import engine
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.process import run
from upgrade.session import Dumped, Session

SOCKET = "lazy-pages.socket"
"""CRIU looks for it in its work directory (criu/include/uffd.h)."""
ANSWERS = "answers"
"""A file in a container's work directory that says that it runs: the server may bring the rest of its memory."""
PROGRESS = "pages-progress.json"

READY_S = 20.0
"""How long a container waits for the page server before it is restored eagerly."""
END_S = 60.0
"""So long the server may take to end; then that is told, and it is looked for less often."""
LATE_POLL_S = 5.0
SAY_S = 10.0
POLL_S = 0.1
AUTO_BYTES = 128 << 20
AUTO_SHARED = 1 / 16
"""What ``--restore auto`` means: on demand from so much memory on, unless more than this share of it is fork(2)'s.

Measured with counted instructions (docs/bench.md): with 64 MiB both take the same time, with 2 GiB the restore itself
takes a third on demand. What processes share comes to each of them on demand, and takes so much more memory then.
"""
USERFAULTFD = "/proc/sys/vm/unprivileged_userfaultfd"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Memory:
    """What became of a container's memory; ``complete_ns`` is a moment of CLOCK_MONOTONIC."""

    complete_ns: int | None
    error: str | None


def reason_against(host: Host, dumped: Dumped) -> str | None:
    """Return why a container cannot be restored on demand, or None."""
    if not dumped.in_place:
        return "its pages were copied"
    adapter = engine(host, dumped.container.engine)
    if not adapter.lazy:
        return f"{adapter.name} cannot restore on demand"
    if not host.exists(USERFAULTFD):
        return "this kernel has no userfaultfd"
    if "NEWUSER" in dumped.container.data.get("namespaces", ()):
        # userfaultfd(2) is called by the task itself, which has no rights outside of its namespace.
        return "it has a user namespace of its own"
    return None


def pays(dumped: Dumped) -> bool:
    """Tell whether a container should be restored on demand if nobody said how."""
    large = dumped.pages * PAGE_BYTES >= AUTO_BYTES
    return large and dumped.shared_pages <= dumped.pages * AUTO_SHARED


class PageService:
    """The page server as the restore sees it."""

    def __init__(self, host: Host, session: Session, work: Callable[[Dumped], Path], say: Say) -> None:
        self.host = host
        self.timeout_s = session.restore_timeout_seconds
        self.work = work
        self.say = say
        self.problems: list[str] = []
        self._lock = Lock()
        self._room_bytes: int | None = None
        self._chosen = {d.directory: d for d in session.containers if self._is_wanted(session, d)}
        self._left: dict[str, Dumped] = {}
        self._broken: str | None = None

    def _is_wanted(self, session: Session, dumped: Dumped) -> bool:
        if session.restore == "eager" or (session.restore == "auto" and not pays(dumped)):
            return False
        against = reason_against(self.host, dumped)
        if against is not None:
            self.say(f"{dumped.container.name} is restored eagerly: {against}")
        return against is None

    def start(self) -> None:
        """Start the page server, if there is anything for it to do."""
        if not self._chosen:
            return
        try:
            _describe(
                {
                    "name": dumped.container.name,
                    "images": os.fspath(paths.STORE / dumped.directory),
                    "work": os.fspath(self.work(dumped)),
                }
                for dumped in self._chosen.values()
            )
        except OSError as e:
            self._broken = f"the page server cannot be told anything: {e}"
        Thread(target=self._start_unit, daemon=True).start()

    def resume(self, served: Collection[str]) -> None:
        """Go on where a restore process has died; what is not back yet is restored eagerly.

        :param served: the directories of those containers whose memory the page server brings
        """
        started = paths.PAGES.exists()
        for directory, dumped in list(self._chosen.items()):
            if not started:
                del self._chosen[directory]
            elif directory not in served:
                self.leave(dumped)

    def _start_unit(self) -> None:
        try:
            run(["systemctl", "start", "--no-block", paths.PAGES_UNIT])
        except UpgradeError as e:
            self._broken = f"the page server does not start: {e}"

    def serves(self, dumped: Dumped) -> bool:
        """Tell whether a container may be restored on demand; waits for the server. Its frames must be there."""
        if dumped.directory not in self._chosen:
            return False
        name = dumped.container.name
        try:
            if not self._take_room(dumped):
                # Pages that processes share after a fork come to each of them.
                self._warn(
                    f"{name} is restored eagerly: on demand its memory might not fit into that of the host"
                )
                self.leave(dumped)
                return False
        except OSError as e:
            self._warn(f"{name} is restored eagerly: {e}")
            self.leave(dumped)
            return False
        deadline = time.monotonic() + READY_S
        while not (self.work(dumped) / SOCKET).exists():
            if self._broken or time.monotonic() > deadline:
                why = self._broken or f"no page server within {READY_S:.0f} s"
                self._warn(f"{name} is restored eagerly: {why}")
                self.leave(dumped)
                return False
            time.sleep(0.002)
        return True

    def _take_room(self, dumped: Dumped) -> bool:
        images = paths.STORE / dumped.directory
        needed = sum((images / name).stat().st_size for name in dumped.frame_files)
        with self._lock:
            if self._room_bytes is None:
                self._room_bytes = self.host.memory()["MemAvailable"]
            self._room_bytes -= needed
            return self._room_bytes >= 0

    def answers(self, dumped: Dumped) -> None:
        """Let the server bring what no task has asked for; without that it begins a little later."""
        with suppress(OSError):
            (self.work(dumped) / ANSWERS).touch()

    def leave(self, dumped: Dumped) -> None:
        """Let go of a container that is not, or was not, restored on demand: nobody waits for its CRIU any more."""
        with self._lock:
            if self._chosen.pop(dumped.directory, None) is None:
                return
            self._left[dumped.directory] = dumped
        self._hang_up(dumped)

    def _hang_up(self, dumped: Dumped) -> None:
        """Be a CRIU that ends at once, in case the server still waits for one."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
            with suppress(OSError):  # not there yet, or no longer
                line.connect(os.fspath(self.work(dumped) / SOCKET))

    def error(self, dumped: Dumped) -> str | None:
        """Return what the server has to say about a restore that failed."""
        told = progress().get(dumped.container.name, {})
        return str(told["error"]) if told.get("error") else None

    def wait(self) -> dict[str, Memory]:
        """Wait until all memory is where it belongs, as long as it comes; return what became of each container's.

        Those that were left are not among them.
        """
        names = {dumped.container.name for dumped in self._chosen.values()}
        done, since, said = -1, time.monotonic(), time.monotonic()
        while True:
            told = {name: entry for name, entry in progress().items() if name in names}
            if all(name in told and told[name]["finished_at"] is not None for name in names):
                break
            now = time.monotonic()
            coming = sum(entry["done_bytes"] for entry in told.values())
            if coming != done:
                done, since = coming, now
            if now - since > self.timeout_s:
                break
            if now - said > SAY_S:
                total = sum(entry["total_bytes"] for entry in told.values())
                self.say(f"{done >> 20} of {total >> 20} MiB of memory are where they belong")
                said = now
            time.sleep(POLL_S)
        return self.memory()

    def memory(self) -> dict[str, Memory]:
        """Return what has become of the memory of each container by now."""
        told = progress()
        names = [dumped.container.name for dumped in self._chosen.values()]
        return {name: self._memory(told.get(name)) for name in names}

    def _memory(self, told: Mapping[str, Any] | None) -> Memory:
        if told is None:
            return Memory(None, f"the page server has not said anything within {self.timeout_s:.0f} s")
        if told["finished_at"] is None:
            still = (
                f"only {told['done_bytes'] >> 20} of {told['total_bytes'] >> 20} MiB of its memory have come"
            )
            return Memory(None, told["error"] or f"{still}, none within {self.timeout_s:.0f} s")
        return Memory(told["finished_at"], told["error"])

    def end(self, late: Callable[[str], object]) -> None:
        """Return when the server has ended, and does not need the frames any more; however long that takes.

        :param late: called once, with what to tell, if it takes longer than it should
        """
        if not self._chosen and not self._left:
            return
        if not self._chosen:
            paths.PAGES.unlink(missing_ok=True)  # a server that only fails is not started anew without it
        deadline = time.monotonic() + END_S
        poll_s = POLL_S
        while _is_running():
            for dumped in self._left.values():
                self._hang_up(dumped)  # a server that came late
            if poll_s != LATE_POLL_S and time.monotonic() > deadline:
                poll_s = LATE_POLL_S
                late(f"{paths.PAGES_UNIT} does not end; the frames stay where they are until it does")
            time.sleep(poll_s)
        paths.PAGES.unlink(missing_ok=True)

    def _warn(self, text: str) -> None:
        self.problems.append(text)
        self.say(text)


_RUNNING = ("active", "activating", "deactivating", "reloading")


def _describe(containers: Iterable[Mapping[str, str]]) -> None:
    """Write the server's description, whole or not at all."""
    fresh = paths.PAGES.with_suffix(".new")
    fresh.write_text(json.dumps({"containers": list(containers)}))
    fresh.rename(paths.PAGES)


def _is_running() -> bool:
    try:
        return run(["systemctl", "is-active", paths.PAGES_UNIT], check=False).stdout.strip() in _RUNNING
    except UpgradeError:  # who cannot be asked may still need the frames
        return True


def progress() -> dict[str, dict[str, Any]]:
    """Return what the server has told, by the names of the containers."""
    try:
        entries = json.loads(paths.PAGES.with_name(PROGRESS).read_text())["containers"]
    except (OSError, ValueError, KeyError):
        return {}
    return {entry["name"]: entry for entry in entries}
