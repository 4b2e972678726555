# SPDX-License-Identifier: MIT
"""Plots as SVG. Colours are classes and variables of the page, which knows light and dark."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from upgrade.bench.statistics import Spread
from upgrade.report.model import Phase

WIDTH = 860
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 18, 46
PLOT_HEIGHT = 300
LABEL_HEIGHT = 17
BAR_HEIGHT, BAR_PITCH, BAR_LEFT, BAR_RIGHT = 20, 34, 160, 64
GAP = 2  # between neighbouring segments

# What belongs together in the stacked bars: class, name, phases.
GROUPS = (
    (
        "leave",
        "stop, or dump",
        ("freeze", "dump", "capture", "quiesce", "last look", "write to disk", "stop", "shutdown"),
    ),
    ("jump", "jump, or reset", ("jump", "reset")),
    ("kernel", "kernel boot", ("kernel boot to first userspace",)),
    ("userspace", "userspace before that", ("userspace to restore", "userspace to start")),
    ("back", "restore, or start", ("restore", "start")),
)


@dataclass(frozen=True, slots=True)
class Series:
    """One mode's line: x in MiB, y in seconds. ``style`` is the class that gives it its colour."""

    title: str
    style: str
    points: Sequence[tuple[int, Spread]]


@dataclass(frozen=True, slots=True)
class Bar:
    """One mode's phases; the length is the downtime itself, of which they are the parts."""

    title: str
    phases: Sequence[Phase]
    seconds: float


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from 0 to ``most`` onto pixels."""

    most: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return round(self.begin + (self.end - self.begin) * value / self.most, 1)


def lines(series: Sequence[Series], floor: Spread | None, label: str) -> str:
    """Return downtime against memory, with the spread of every point and the floor as a dashed line.

    :param label: what the plot shows, for those who cannot see it
    """
    sizes = sorted({mib for one in series for mib, _ in one.points})
    seconds = [spread.high for one in series for _, spread in one.points]
    ticks_y = ticks(max([*seconds, floor.high if floor else 0.0, 0.1]))
    x = Scale(sizes[-1] * 1.02, LEFT, WIDTH - RIGHT)
    y = Scale(ticks_y[-1], TOP + PLOT_HEIGHT, TOP)
    parts = [*grid_y(ticks_y, y), *axis_x(sizes, x)]
    if floor:
        parts.append(
            f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(floor.median)}" y2="{y(floor.median)}"/>'
        )
    for one in series:
        parts += drawn(one, x, y)
    ends = [(y(one.points[-1][1].median), one.title, one.style) for one in series]
    if floor:
        ends.append((y(floor.median), "floor: bare kexec", "floor-label"))
    parts += end_labels(ends, TOP + PLOT_HEIGHT + LABEL_HEIGHT)
    return document(TOP + PLOT_HEIGHT + BOTTOM, label, parts)


def drawn(one: Series, x: Scale, y: Scale) -> Iterator[str]:
    """Yield a line, its points and their spread."""
    path = " ".join(f"{x(mib)},{y(spread.median)}" for mib, spread in one.points)
    yield f'<g class="{one.style}"><polyline class="line" points="{path}"/>'
    for mib, spread in one.points:
        yield f'<line class="spread" x1="{x(mib)}" x2="{x(mib)}" y1="{y(spread.low)}" y2="{y(spread.high)}"/>'
        text = f"{one.title}, {memory(mib)}: {spread.median:.3f} s ({spread.low:.3f} to {spread.high:.3f})"
        point = f'class="point" cx="{x(mib)}" cy="{y(spread.median)}" r="4"'
        yield f"<circle {point}><title>{escape(text)}</title></circle>"
    yield "</g>"


def end_labels(ends: Iterable[tuple[float, str, str]], lowest: float) -> Iterator[str]:
    """Yield the names of lines at their right ends, moved apart where they would overlap."""
    ordered = sorted(ends)
    places = spaced([at for at, _, _ in ordered], LABEL_HEIGHT, lowest)
    left = WIDTH - RIGHT
    for (at, title, style), place in zip(ordered, places, strict=True):
        lead = f"{left + 4},{at} {left + 12},{place} {left + 18},{place}"
        yield f'<g class="{style}"><polyline class="lead" points="{lead}"/>'
        yield f'<text class="end" x="{left + 22}" y="{place + 4}">{escape(title)}</text></g>'


def spaced(wanted: Sequence[float], distance: float, highest: float) -> list[float]:
    """Return ascending places at least ``distance`` apart, near those that are wanted, none above ``highest``."""
    places: list[float] = []
    for at in wanted:
        places.append(max(at, places[-1] + distance) if places else at)
    limit = highest
    for number in range(len(places) - 1, -1, -1):
        places[number] = round(min(places[number], limit), 1)
        limit = places[number] - distance
    return places


def bars(modes: Sequence[Bar], floor: Spread | None, label: str) -> str:
    """Return the phases of each mode as one stacked bar, with the floor as a dashed line."""
    ticks_x = ticks(max([*(bar.seconds for bar in modes), floor.median if floor else 0.0, 0.1]))
    height = len(modes) * BAR_PITCH
    x = Scale(ticks_x[-1], BAR_LEFT, WIDTH - BAR_RIGHT)
    parts = []
    for value in ticks_x:
        parts.append(
            f'<line class="grid" x1="{x(value)}" x2="{x(value)}" y1="{TOP}" y2="{TOP + height}"/>'
            f'<text class="tick" text-anchor="middle" x="{x(value)}" y="{TOP + height + 18}">{value:g}</text>'
        )
    middle = (BAR_LEFT + WIDTH - BAR_RIGHT) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{middle}" y="{TOP + height + 38}">seconds</text>'
    )
    for number, bar in enumerate(modes):
        parts += stacked(bar, TOP + number * BAR_PITCH + (BAR_PITCH - BAR_HEIGHT) / 2, x)
    if floor:
        at = x(floor.median)
        parts.append(f'<line class="floor" x1="{at}" x2="{at}" y1="{TOP - 6}" y2="{TOP + height}"/>')
        parts.append(f'<text class="end" x="{at + 4}" y="{TOP - 6}">floor</text>')
    return document(TOP + height + BOTTOM, label, parts)


def stacked(bar: Bar, top: float, x: Scale) -> Iterator[str]:
    """Yield one bar."""
    middle = top + BAR_HEIGHT / 2 + 4
    yield f'<text class="name" text-anchor="end" x="{BAR_LEFT - 10}" y="{middle}">{escape(bar.title)}</text>'
    at = 0.0
    for style, name, seconds in grouped(bar.phases):
        width = x(at + seconds) - x(at)
        if width > 0:
            text = f"{bar.title}: {name}: {seconds:.3f} s"
            yield (
                f'<rect class="{style}" x="{x(at)}" y="{top}" width="{max(width - GAP, 0.5):.1f}" '
                f'height="{BAR_HEIGHT}"><title>{escape(text)}</title></rect>'
            )
        at += seconds
    end = max(at, bar.seconds)
    yield f'<text class="value" x="{x(end) + 6}" y="{middle}">{bar.seconds:.2f} s</text>'


def grouped(phases: Iterable[Phase]) -> list[tuple[str, str, float]]:
    """Return class, name and seconds of each group that has a phase; an unknown phase comes last."""
    found = {style: 0.0 for style, _, _ in GROUPS}
    other = 0.0
    known = {name: style for style, _, names in GROUPS for name in names}
    for phase in phases:
        if phase.name in known:
            found[known[phase.name]] += phase.seconds
        else:
            other += phase.seconds
    rows = [(style, name, found[style]) for style, name, _ in GROUPS if found[style]]
    return [*rows, ("other", "other", other)] if other else rows


def grid_y(values: Sequence[float], y: Scale) -> Iterator[str]:
    """Yield horizontal lines with their numbers, and the name of the axis."""
    for value in values:
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}"/>'
        yield f'<text class="tick" text-anchor="end" x="{LEFT - 8}" y="{y(value) + 4}">{value:g}</text>'
    middle = TOP + PLOT_HEIGHT / 2
    yield (
        f'<text class="axis" text-anchor="middle" transform="rotate(-90 14 {middle})" x="14" '
        f'y="{middle}">downtime, seconds</text>'
    )


def axis_x(sizes: Sequence[int], x: Scale) -> Iterator[str]:
    """Yield the sizes that were measured; where two are close only the larger one is named."""
    bottom = TOP + PLOT_HEIGHT
    shown = WIDTH * 10.0
    for mib in reversed(sizes):
        yield f'<line class="tickmark" x1="{x(mib)}" x2="{x(mib)}" y1="{bottom}" y2="{bottom + 5}"/>'
        if shown - x(mib) >= 52:
            shown = x(mib)
            yield f'<text class="tick" text-anchor="middle" x="{x(mib)}" y="{bottom + 19}">{memory(mib)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield (
        f'<text class="axis" text-anchor="middle" x="{middle}" y="{bottom + 38}">'
        "memory of all containers together</text>"
    )


def ticks(most: float, about: int = 5) -> list[float]:
    """Return round numbers from 0 to at least ``most``."""
    raw = most / about
    magnitude: float = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    return [round(number * step, 10) for number in range(math.ceil(most / step - 1e-9) + 1)]


def memory(mib: float) -> str:
    """Return an amount of memory for an axis."""
    return f"{mib / 1024:.3g} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def document(height: float, label: str, parts: Iterable[str]) -> str:
    """Return a whole picture."""
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label={quoteattr(label)}>\n{body}\n</svg>'
    )
