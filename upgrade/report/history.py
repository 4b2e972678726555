# SPDX-License-Identifier: MIT
"""The kernels that this host has run, when each came and how it went.

An append-only file of JSON lines. A record is one ``write(2)`` and an ``fsync``; a machine that dies in the
middle leaves a torn last line, which readers pass over and the next writer closes.
"""

import errno
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from upgrade.errors import UpgradeError

SCHEMA_VERSION = 1


class Event(StrEnum):
    """What is recorded: two ways in which a kernel comes and two in which it goes."""

    BOOT = "boot"
    UPGRADE = "upgrade"
    JUMP = "jump"
    SHUTDOWN = "shutdown"


STARTS = (Event.BOOT, Event.UPGRADE)


@dataclass(frozen=True, slots=True)
class Record:
    """One line. ``at`` is ISO 8601 in UTC, ``session`` the upgrade's id, null for boots and shutdowns."""

    event: Event
    at: str
    boot_id: str
    release: str
    session: str | None = None
    livepatches: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the record's JSON object."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"event": str(self.event), "livepatches": list(self.livepatches)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Build a record; members that a later version has added are left out."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**known | {"event": Event(data["event"]), "livepatches": tuple(data["livepatches"])})


@dataclass(frozen=True, slots=True)
class KernelSpan:
    """One kernel from its start to its end. ``until`` is null while it runs, and after a crash nobody saw."""

    release: str
    since: str
    until: str | None
    came_in: str
    session: str | None
    ended: str
    livepatches: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the span's JSON object, where the start is called ``from``."""
        return {
            "release": self.release,
            "from": self.since,
            "until": self.until,
            "came_in": self.came_in,
            "session": self.session,
            "ended": self.ended,
            "livepatches": list(self.livepatches),
        }


def read(file: Path) -> list[Record]:
    """Return the records in their order; lines that are torn or not ours are passed over.

    :raises UpgradeError: where the file is there and cannot be read
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UpgradeError(
            f"the history cannot be read: {e.strerror}", subject=str(file), hint="run it as root"
        ) from e
    records = []
    for line in lines:
        try:
            records.append(Record.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return records


def append(file: Path, record: Record) -> None:
    """Add a record and see it onto the disk.

    :raises UpgradeError: where it cannot be written
    """
    data = json.dumps(record.to_json(), separators=(",", ":")).encode() + b"\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data
            written = os.write(fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        raise UpgradeError(
            f"the history cannot be written: {e.strerror}",
            subject=str(file),
            hint="make room or make the file writable",
        ) from e


def record_start(file: Path, record: Record) -> bool:
    """Record how this kernel came, once for each boot id; return whether it was new."""
    if any(r.boot_id == record.boot_id and r.event in STARTS for r in read(file)):
        return False
    append(file, record)
    return True


def timeline(records: Iterable[Record], now: str, running_boot_id: str) -> list[KernelSpan]:
    """Return the kernels in the order of their starts.

    A kernel without a record of its end runs if it has the running boot id, else a crash or a power failure
    ended it; and so where it announced a jump after which the machine booted: the jump came to nothing.
    ``now`` bounds a clock that was set back: no span ends before it begins or after ``now``.
    """
    ordered = list(records)
    starts: dict[str, Record] = {}
    for record in ordered:
        if record.event in STARTS:
            starts.setdefault(record.boot_id, record)
    spans = []
    for (boot_id, start), successor in zip_longest(starts.items(), list(starts.values())[1:]):
        ends = [r for r in ordered if r.boot_id == boot_id and r.event not in STARTS]
        until, ended = (None, "running") if boot_id == running_boot_id else _end(ends, successor)
        spans.append(
            KernelSpan(
                start.release,
                start.at,
                None if until is None else max(start.at, min(until, now)),
                "seamless upgrade" if start.event is Event.UPGRADE else "boot",
                start.session,
                ended,
                (ends[-1] if ends and ends[-1].livepatches else start).livepatches,
            )
        )
    return spans


def _end(ends: Sequence[Record], successor: Record | None) -> tuple[str | None, str]:
    """Return when and how a kernel ended that does not run any more."""
    if ends and ends[-1].event is Event.SHUTDOWN:
        return ends[-1].at, "shutdown"
    if ends and (successor is None or successor.event is Event.UPGRADE):
        return ends[-1].at, "seamless upgrade"
    return None, "crash or power loss"


def render_text(spans: Sequence[KernelSpan]) -> str:
    """Return the timeline as text, the latest kernel first."""
    if not spans:
        return "No kernel is on record yet.\n"
    rows = [("KERNEL", "FROM", "UNTIL", "CAME IN BY", "ENDED BY")]
    for span in reversed(spans):
        until = _minute(span.until) if span.until else "now" if span.ended == "running" else "unknown"
        rows.append((span.release, _minute(span.since), until, span.came_in, span.ended))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    for index, span in reversed(list(enumerate(reversed(spans), start=1))):
        if span.livepatches:
            lines.insert(index + 1, f"  with live patches: {', '.join(span.livepatches)}")
    return "\n".join(lines) + "\n"


def to_json(spans: Sequence[KernelSpan]) -> dict[str, Any]:
    """Return the timeline's JSON object."""
    return {"schema_version": SCHEMA_VERSION, "kernels": [span.to_json() for span in spans]}


def _minute(at: str) -> str:
    return at[:16].replace("T", " ")
