# SPDX-License-Identifier: MIT
"""What has to be undone, kept where a killed run cannot take it along.

Every step that changes the host first writes its undo here. An error unwinds the stack in the run itself; whatever the
file still holds when the run has ended, because it was killed or an undo failed, its unit's ``ExecStopPost=`` unwinds,
or ``seamless-upgrade recover`` whenever it is called. All call the same functions. No file: nothing is left to undo.
"""

import json
import logging
import signal
import threading
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memfs import pmem, ranges, store
from upgrade import cgroup, linux, movers, netlock
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.kexec import filesystems, quiesce

log = logging.getLogger(__name__)


def _unload(_host: Host) -> None:
    linux.kexec_unload()


def _release(_host: Host, *, where: str, start_bytes: int, size_bytes: int) -> None:
    store.unmount(Path(where))
    device = pmem.find(ranges.Range(start_bytes, size_bytes))
    if device is not None:
        store.wipe(device)


def _thaw(host: Host, *, cgroups: list[str]) -> None:
    for name in cgroups:
        cgroup.thaw(host, name)


def _thaw_filesystem(_host: Host, *, where: str) -> None:
    filesystems.thaw(where)


def _unlock(_host: Host) -> None:
    netlock.remove()


def _resume(host: Host, *, units: list[str]) -> None:
    quiesce.resume(units, host)


def _movers(host: Host, *, before: dict[str, str]) -> None:
    movers.restore(host, before)


def _blocks(host: Host, *, spans: list[tuple[int, int]]) -> None:
    from memfs import room  # numpy: half a second, ten in an emulated machine

    room.restore([ranges.Range(start, size) for start, size in spans], host.root)


def _swap_limits(host: Host, *, limits: dict[str, str]) -> None:
    from memfs import swap

    swap.restore(limits, host.root)


def _undamon(host: Host) -> None:
    from memfs import damon

    damon.release(host.root)


def _unswap(_host: Host, *, device: str) -> None:
    from memfs import swap

    if Path(device).exists():
        swap.remove(Path(device))


def _forget_units(_host: Host, *, session: str) -> None:
    from upgrade.services import dropin

    dropin.forget(session)


def _start_cold(host: Host, *, file: str) -> None:
    from upgrade.cold import record

    found = record.Record.load(Path(file))
    lost = record.lost(record.start(host, found)) if found else []
    Path(file).unlink(missing_ok=True)
    if lost:
        raise UpgradeError("; ".join(lost))


def _watchdogs(_host: Host) -> None:
    from upgrade.services import systemd

    systemd.watchdogs(enabled=True)


def _remove_file(host: Host, *, path: str) -> None:
    host.path(path).unlink(missing_ok=True)


ACTIONS: Mapping[str, Callable[..., None]] = {
    "unload": _unload,
    "release": _release,
    "thaw": _thaw,
    "thaw_filesystem": _thaw_filesystem,
    "unlock": _unlock,
    "resume": _resume,
    "movers": _movers,
    "blocks": _blocks,
    "swap_limits": _swap_limits,
    "undamon": _undamon,
    "unswap": _unswap,
    "remove_file": _remove_file,
    "forget_units": _forget_units,
    "start_cold": _start_cold,
    "watchdogs": _watchdogs,
}


def uninterrupted() -> None:
    """Keep the signals that abort a run from aborting its undo; the process ends afterwards.

    Ignored and not blocked: a mask is each thread's own, and Python runs the handler for all of them.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Undo:
    """A stack of undo actions in a file of JSON lines."""

    def __init__(self, host: Host, file: Path) -> None:
        self.host = host
        self.file = file
        self.lock = threading.RLock()  # the disks are frozen by a thread of their own

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        uninterrupted()
        for problem in self.unwind():
            log.error("%s", problem)

    def push(self, action: str, **arguments: Any) -> None:
        """Remember how to undo the step that comes next."""
        if action not in ACTIONS:
            raise KeyError(action)
        with self.lock, self.file.open("a") as f:
            f.write(json.dumps({"action": action, "arguments": arguments}) + "\n")

    def forget(self, action: str) -> None:
        """Take the newest ``action`` back: its step did not happen."""
        with self.lock:
            self._drop(next(entry for entry in reversed(self._entries()) if entry["action"] == action))

    def unwind(self, only: Container[str] | None = None) -> list[str]:
        """Undo everything, the last step first; return what could not be undone, a line each.

        That stays in the file, to be tried again.

        :param only: undo just these actions and leave the others for later
        """
        problems = []
        for entry in reversed(self._entries()):
            if only is not None and entry["action"] not in only:
                continue
            try:
                ACTIONS[entry["action"]](self.host, **entry["arguments"])
            except Exception as e:  # the other steps must be undone all the same
                problems.append(f"could not undo {entry['action']}: {e}")
                continue
            try:
                self._drop(entry)
            except OSError as e:
                problems.append(f"could not record that {entry['action']} was undone: {e}")
        return problems

    def left(self) -> list[str]:
        """Return the actions that are not undone, in the order of their steps."""
        return [entry["action"] for entry in self._entries()]

    def _drop(self, entry: dict[str, Any]) -> None:
        """Forget the newest entry that equals ``entry``."""
        with self.lock:
            left = self._entries()[::-1]
            if entry in left:  # another thread may have been faster
                left.remove(entry)
                self._write(left[::-1])

    def _entries(self) -> list[dict[str, Any]]:
        try:
            lines = self.file.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [entry for entry in map(_parse, lines) if entry is not None]

    def _write(self, entries: list[dict[str, Any]]) -> None:
        if not entries:
            self.file.unlink()
            return
        temporary = self.file.with_suffix(".new")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        temporary.rename(self.file)


def _parse(line: str) -> dict[str, Any] | None:
    """Return an entry; None for one that a killed run did not finish, whose step it did not begin either."""
    try:
        found: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found
