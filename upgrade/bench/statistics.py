# SPDX-License-Identifier: MIT
"""Medians, spreads and slopes."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from upgrade.bench.model import Result, Row
from upgrade.report.model import Phase

MIB_PER_GIB = 1024
# What a change of kernel takes, whatever becomes of the containers. Their length depends on the disk.
BOOT = ("jump", "kernel boot to first userspace", "userspace to restore")


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of the same thing."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line through measurements: seconds for no memory at all, and for every GiB more."""

    seconds: float
    seconds_per_gib: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return median, smallest and largest of what is there; None for nothing."""
    known = sorted(value for value in values if value is not None)
    return Spread(statistics.median(known), known[0], known[-1], len(known)) if known else None


def downtime(row: Row, mode: str) -> Spread | None:
    """Return a mode's downtime: in the guest's time, or outside where the guest's clock did not run on."""
    cells = row.of(mode)
    return spread(c.downtime_seconds for c in cells) or spread(c.outside_seconds for c in cells)


def work(row: Row, mode: str) -> Spread | None:
    """Return what a mode adds to the boot: its downtime without the phases of the boot.

    None for modes that start containers afresh.
    """
    found = []
    for cell in row.of(mode):
        seconds = {phase.name: phase.seconds for phase in cell.phases}
        if cell.downtime_seconds is not None and all(name in seconds for name in BOOT):
            found.append(cell.downtime_seconds - sum(seconds[name] for name in BOOT))
    return spread(found)


def slope(
    rows: Sequence[Row], mode: str, figure: Callable[[Row, str], Spread | None] = downtime
) -> Slope | None:
    """Return the line through the medians of rows of different memory, by least squares."""
    points = [(row.total_mib, found.median) for row in rows if (found := figure(row, mode))]
    if len({mib for mib, _ in points}) < 2:
        return None
    line = statistics.linear_regression(*zip(*points, strict=True))
    return Slope(line.intercept, line.slope * MIB_PER_GIB)


def floor(rows: Iterable[Row]) -> Spread | None:
    """Return the time of a bare kexec to the first userspace, over all rows."""
    return spread(cell.floor_seconds for row in rows for cell in row.cells if cell.good)


def phases(row: Row, mode: str) -> tuple[Phase, ...]:
    """Return the medians of a mode's phases, in their order."""
    names = dict.fromkeys(phase.name for cell in row.of(mode) for phase in cell.phases)
    found = []
    for name in names:
        values = [phase.seconds for cell in row.of(mode) for phase in cell.phases if phase.name == name]
        found.append(Phase(name, statistics.median(values)))
    return tuple(found)


def counts(result: Result) -> list[int]:
    """Return the numbers of containers that were measured."""
    return sorted({row.containers for row in result.rows})


def rows_of(result: Result, containers: int) -> list[Row]:
    """Return the rows with so many containers, the smallest first."""
    found = [row for row in result.rows if row.containers == containers]
    return sorted(found, key=lambda row: row.memory_mib)
