# SPDX-License-Identifier: MIT
"""What has been restored in this boot, in a file that outlives the restore process.

A restore process may be killed at any moment, and systemd starts another one. What has run again since the jump must
not be restored a second time: its memory would go back, but not the files and the peers that have heard from it. So
every step is written down before it is taken. The file ends with the boot, as the containers do.
"""

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

TAKE_S = 5.0
"""How long to wait for a process that just dies, or for a child of it that has not yet called execve(2)."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A container that was given to its engine."""

    lazy: bool
    """Its memory comes on demand."""
    limit_s: float
    """So long its restore may take."""
    helpers: tuple[str, ...]
    """The cgroups in which its restore works, beside that of our unit."""


@dataclass(frozen=True, slots=True)
class Back:
    """What became of a container; when it ran again (TSC)."""

    outcome: str  # restored, cold-started, lost
    reason: str | None
    running_at: int
    lazy: bool = False


class Ledger:
    """The file; it belongs to one process at a time. Containers go by their numbers in the session."""

    def __init__(self, fd: int, begun_at: int) -> None:
        self._fd = fd
        self._lock = Lock()
        self.starts = 0
        """How many processes have begun, with this one."""
        self.begun_at = begun_at
        """When the first of them began (TSC)."""
        self.begun: dict[int, Begun] = {}
        self.may_run: set[int] = set()
        """Containers that may have run since the jump."""
        self.back: dict[int, Back] = {}
        self.interrupted: set[int] = set()
        """Containers during whose restore a process died."""
        self.status: int | None = None
        """The exit status that goes with the report; None as long as no report was written."""
        self.ended = False

    @classmethod
    def take(cls, file: Path, begun_at: int) -> Self | None:
        """Read the ledger and begin; None if another process has it.

        :param begun_at: when this process began (TSC)
        """
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + TAKE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    return None
                time.sleep(0.01)
        ledger = cls(fd, begun_at)
        text = file.read_text()
        for line in text.splitlines():
            try:
                ledger._apply(json.loads(line))
            except (ValueError, KeyError, TypeError):  # its step was not taken
                continue
        if text and not text.endswith("\n"):
            os.write(fd, b"\n")
        if not ledger.ended:
            with suppress(OSError):  # /run is full: it is restored all the same
                ledger._note("start", at=begun_at)
        return ledger

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._fd)

    def unsettled(self) -> dict[int, Begun]:
        """Return the containers of which only the beginning is known."""
        return {number: begun for number, begun in self.begun.items() if number not in self.back}

    def begin(self, number: int, begun: Begun) -> None:
        """Note that a container is given to its engine now."""
        self._note("begin", number=number, **asdict(begun))

    def let_run(self, number: int) -> None:
        """Note that a container may run from now on."""
        self._note("let run", number=number)

    def end(self, number: int, back: Back) -> None:
        """Note what became of a container."""
        self._note("back", number=number, **asdict(back))

    def report(self, status: int) -> None:
        """Note that the report is written, and the exit status that goes with it."""
        self._note("report", status=status)

    def finish(self) -> None:
        """Note that nothing is left to do."""
        self._note("finish")

    def _note(self, event: str, **values: Any) -> None:
        entry = {"event": event, **values}
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            self._apply(entry)
            os.write(self._fd, line)

    def _apply(self, entry: dict[str, Any]) -> None:
        event, number = entry.pop("event"), entry.pop("number", -1)
        match event:
            case "start":
                self.begun_at = min(self.begun_at, entry["at"])
                self.starts += 1
                self.interrupted |= self.unsettled().keys()
            case "begin":
                self.begun[number] = Begun(**{**entry, "helpers": tuple(entry["helpers"])})
            case "let run":
                self.may_run.add(number)
            case "back":
                self.back[number] = Back(**entry)
            case "report":
                self.status = entry["status"]
            case "finish":
                self.ended = True
