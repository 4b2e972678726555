# SPDX-License-Identifier: MIT
"""A result as text."""

from collections.abc import Iterable, Iterator

from upgrade.bench import statistics
from upgrade.bench.matrix import BY_NAME
from upgrade.bench.model import MIB, Cell, Result, Row
from upgrade.bench.statistics import Spread

COLUMNS = ("mode", "downtime", "spread", "outside", "copied", "extra memory", "rounds")
NONE = "-"
# What lines are drawn through
FIGURES = (("downtime", statistics.downtime), ("downtime without jump and boot", statistics.work))


def render(result: Result) -> str:
    """Return the whole result."""
    return "\n".join(lines(result))


def lines(result: Result) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"{result.kernel_from} -> {result.kernel_to}; {clock(result)}"
    if floor := statistics.floor(result.rows):
        yield f"floor (bare kexec to the first userspace): {seconds(floor.median)}, {between(floor)}"
    for row in sorted(result.rows, key=lambda row: (row.containers, row.memory_mib)):
        yield ""
        yield f"{size(row)}"
        yield from aligned([COLUMNS, *(entries(row, mode) for mode in tried(row, result.modes))])
    for count in statistics.counts(result):
        yield from slopes(result, count)
    failed = [(row, cell) for row, cell in result.cells() if not cell.good]
    if failed:
        yield ""
        yield "failed"
        yield from (f"  {size(row)}, {cell.mode}, round {cell.round}: {cell.error}" for row, cell in failed)


def clock(result: Result) -> str:
    """Return how time was measured."""
    counted = "counted instructions, 2 ns each" if result.clock == "instructions" else "the host's time"
    return f"time is {counted} ({result.accelerator})"


def size(row: Row) -> str:
    """Return what a row holds."""
    each = " each" if row.containers > 1 else ""
    return f"{row.containers} container{'s' if row.containers > 1 else ''}, {mebibytes(row.memory_mib)}{each}"


def entries(row: Row, mode: str) -> tuple[str, ...]:
    """Return one line of a row's table."""
    cells = row.of(mode)
    attempts = [cell for cell in row.cells if cell.mode == mode]
    found = statistics.downtime(row, mode)
    outside = statistics.spread(cell.outside_seconds for cell in cells)
    copied = statistics.spread(float(cell.bytes_copied) for cell in cells)
    extra = statistics.spread(extra_of(cell) for cell in cells)
    return (
        BY_NAME[mode].title,
        f"{seconds(found.median)}{'' if inside(cells) else ' (outside)'}" if found else NONE,
        between(found) if found else NONE,
        seconds(outside.median) if outside else NONE,
        mebibytes(copied.median / MIB) if copied and copied.median else NONE,
        mebibytes(extra.median / MIB) if extra else NONE,
        f"{len(cells)} of {len(attempts)}" if len(cells) != len(attempts) else str(len(cells)),
    )


def tried(row: Row, modes: Iterable[str]) -> list[str]:
    """Return the modes that were measured, or failed, at this size."""
    names = {cell.mode for cell in row.cells}
    return [mode for mode in modes if mode in names]


def inside(cells: list[Cell]) -> bool:
    """Tell whether there is a figure in the guest's own time."""
    return any(cell.downtime_seconds is not None for cell in cells)


def extra_of(cell: Cell) -> float | None:
    """Return the most memory that a cell took beside the containers' own."""
    return None if cell.extra_bytes is None else float(cell.extra_bytes)


def slopes(result: Result, count: int) -> Iterator[str]:
    """Yield what a GiB more costs."""
    rows = statistics.rows_of(result, count)
    for title, figure in FIGURES:
        lines = [(mode, line) for mode in result.modes if (line := statistics.slope(rows, mode, figure))]
        if lines:
            yield ""
            yield f"{title} against memory, {count} container{'s' if count > 1 else ''}"
            yield from (
                f"  {BY_NAME[mode].title}: {line.seconds:.2f} s + {line.seconds_per_gib:.2f} s/GiB"
                for mode, line in lines
            )


def seconds(value: float) -> str:
    """Return a duration with three significant digits, but no more than milliseconds."""
    if value < 10:
        return f"{value:.3f} s" if value < 1 else f"{value:.2f} s"
    return f"{value:.1f} s"


def between(found: Spread) -> str:
    """Return the smallest and the largest of several measurements."""
    if found.count < 2:
        return "once"
    digits = 3 if found.high < 1 else 2 if found.high < 10 else 1
    return f"{found.low:.{digits}f}-{found.high:.{digits}f}"


def mebibytes(mib: float) -> str:
    """Return an amount of memory."""
    if mib >= 1024:
        return f"{mib / 1024:.3g} GiB"
    return f"{mib:.0f} MiB" if mib >= 10 or mib == int(mib) else f"{mib:.1f} MiB"


def aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield lines with their columns one below the other; all but the first to the right."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        yield "  " + "  ".join(cells).rstrip()
