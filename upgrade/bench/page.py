# SPDX-License-Identifier: MIT
"""A result as one page of HTML that needs nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from upgrade.bench import statistics, svg, table
from upgrade.bench.matrix import BY_NAME, Way
from upgrade.bench.model import Result, Row
from upgrade.bench.svg import Bar, Series

TEMPLATE = Path(__file__).with_name("bench.html.j2")
DASH = "\N{EN DASH}"


def render(result: Result) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    floor = statistics.floor(result.rows)
    measured = [mode for mode in result.modes if BY_NAME[mode].way is not Way.FLOOR]
    return environment.get_template(TEMPLATE.name).render(
        result=result,
        clock=table.clock(result),
        counted=result.clock == "instructions",
        floor=floor is not None,
        facts=list(facts(result, measured)),
        charts=list(charts(result, measured)),
        stacks=list(stacks(result, measured)),
        groups=[(style, name) for style, name, _ in svg.GROUPS],
        tables=[(table.size(row), lines(row, measured)) for row in ordered(result)],
        columns=table.COLUMNS,
        slopes=list(slopes(result, measured)),
        phases=[(table.size(row), phase_table(row, measured)) for row in ordered(result)],
        failed=[(table.size(row), cell) for row, cell in result.cells() if not cell.good],
        notes=sorted({(cell.mode, note) for _, cell in result.cells() for note in cell.notes}),
        titles={name: mode.title for name, mode in BY_NAME.items()},
    )


def ordered(result: Result) -> list[Row]:
    """Return the rows in the order of the page."""
    return sorted(result.rows, key=lambda row: (row.containers, row.memory_mib))


def facts(result: Result, modes: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield what is shown first, the floor and each mode with one container: two figures, meaning, colour."""
    if floor := statistics.floor(result.rows):
        yield table.seconds(floor.median), "", "floor: a bare kexec", "floor-label"
    for count in statistics.counts(result)[:1]:
        rows = statistics.rows_of(result, count)
        for mode in modes:
            line, last = statistics.slope(rows, mode), statistics.downtime(rows[-1], mode)
            title, style = BY_NAME[mode].title, f"mode-{mode}"
            if line:
                sign = "+" if line.seconds_per_gib >= 0 else "\N{MINUS SIGN}"
                yield f"{line.seconds:.2f} s", f"{sign} {abs(line.seconds_per_gib):.2f} s/GiB", title, style
            elif last:
                yield table.seconds(last.median), f"with {table.size(rows[-1])}", title, style


def lines(row: Row, modes: list[str]) -> list[tuple[str, ...]]:
    """Return the lines of a row's table."""
    return [
        (entries[0], *(figure(text) for text in entries[1:]))
        for entries in (table.entries(row, mode) for mode in table.tried(row, modes))
    ]


def figure(text: str) -> str:
    """Return an entry of a table with the dash that belongs between figures."""
    return text.replace("-", DASH)


def charts(result: Result, modes: list[str]) -> Iterator[tuple[str, Markup]]:
    """Yield title and plot of downtime against memory for each number of containers."""
    for count in statistics.counts(result):
        rows = statistics.rows_of(result, count)
        series = []
        for mode in modes:
            points = [(row.total_mib, found) for row in rows if (found := statistics.downtime(row, mode))]
            if points:
                series.append(Series(BY_NAME[mode].title, f"mode-{mode}", points))
        if len(rows) > 1 and series:  # one size is told by the bars of the phases
            title = containers(count)
            floor = statistics.floor(rows)
            yield title, Markup(svg.lines(series, floor, f"Downtime against memory, {title}"))


def stacks(result: Result, modes: list[str]) -> Iterator[tuple[str, Markup]]:
    """Yield title and plot of the phases, for the largest row of each number of containers."""
    for count in statistics.counts(result):
        row = statistics.rows_of(result, count)[-1]
        bars = []
        for mode in modes:
            found, phases = statistics.downtime(row, mode), statistics.phases(row, mode)
            if found and phases:
                bars.append(Bar(BY_NAME[mode].title, phases, found.median))
        if bars:
            title = table.size(row)
            yield title, Markup(svg.bars(bars, statistics.floor([row]), f"Phases of the downtime, {title}"))


def slopes(result: Result, modes: list[str]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield what no memory and a GiB more cost, for each number of containers."""
    for count in statistics.counts(result):
        rows = statistics.rows_of(result, count)
        for title, figure in table.FIGURES:
            found = [
                (BY_NAME[mode].title, line)
                for mode in modes
                if (line := statistics.slope(rows, mode, figure))
            ]
            if found:
                yield (
                    f"{title}, {containers(count)}",
                    [
                        (name, f"{line.seconds:.2f} s", f"{line.seconds_per_gib:+.2f} s")
                        for name, line in found
                    ],
                )


def phase_table(row: Row, modes: list[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the medians of all phases of a row."""
    found: list[tuple[str, Any]] = [
        (BY_NAME[mode].title, [(p.name, f"{p.seconds:.3f}") for p in statistics.phases(row, mode)])
        for mode in modes
    ]
    return [(title, phases) for title, phases in found if phases]


def containers(count: int) -> str:
    """Return a number of containers as text."""
    return f"{count} container{'s' if count > 1 else ''}"
