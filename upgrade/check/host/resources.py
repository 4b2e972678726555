# SPDX-License-Identifier: MIT
"""Room on the disks, and the clock."""

import os
from collections.abc import Iterator
from pathlib import Path

from upgrade import linux, paths
from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation

CLOCK_SOURCES = "/sys/devices/system/clocksource/clocksource0"

# A session's plan, its report and the history are some ten KiB each; in /run are the events and CRIU's cache.
LEAST_BYTES = 1 << 20
GOOD_BYTES = 16 << 20


def space(situation: Situation) -> Iterator[Finding]:
    """Look where reports and state are written to."""
    for path, what in ((paths.STATE, "reports and the plan"), (paths.RUNTIME, "the state of the run")):
        there = _existing(situation.host.path(os.fspath(path)))
        found = os.statvfs(there)
        free = found.f_bavail * found.f_frsize
        seen = f"{free >> 20} MiB free" + (", read-only" if found.f_flag & os.ST_RDONLY else "")
        no_file = found.f_files and not found.f_favail  # file systems without a limit say 0 and 0
        if found.f_flag & os.ST_RDONLY or free < LEAST_BYTES or no_file:
            yield failed(
                os.fspath(path),
                "no file more can be made" if no_file else seen,
                source=os.fspath(there),
                reason=f"{what} cannot be written there",
                remedy=f"make room: df -h {there}",
            )
        elif free < GOOD_BYTES:
            yield warned(
                os.fspath(path),
                seen,
                source=os.fspath(there),
                reason=f"{what} fit just now, but others write there, too",
                remedy=f"make room: df -h {there}",
            )
        else:
            yield passed(os.fspath(path), seen, os.fspath(there))


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def clock(situation: Situation) -> Iterator[Finding]:
    """Look for a time stamp counter that runs evenly: the one clock that goes on during the jump."""
    source = f"{CLOCK_SOURCES}/available_clocksource"
    known = situation.host.read(source).split()
    if not any("tsc" in name for name in known):  # the kernel strikes it off where it does not run evenly
        yield warned(
            "time stamp counter",
            f"is not among the clock sources ({', '.join(known)})",
            source=source,
            reason="the new kernel's clock may be a second off, and nobody knows how long the containers were away",
            remedy="set the clock afterwards, as NTP does",
        )
        return
    right = (
        "NTP keeps it right"
        if linux.clock_is_synchronised()
        else "NTP does not keep it right, before as after"
    )
    yield passed("clock", f"runs on with the time stamp counter; {right}", source)
