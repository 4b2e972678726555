# SPDX-License-Identifier: MIT
"""What the checks found, for people: grouped by family, the remedy under what needs one."""

import textwrap
from collections.abc import Iterable, Sequence

from upgrade.check.catalog import FAMILIES
from upgrade.check.model import Check, Result, Status
from upgrade.report.text import BOLD, CYAN, GREEN, RED, WIDTH, YELLOW, Paint

COLOURS = {Status.PASS: GREEN, Status.WARN: YELLOW, Status.FAIL: RED, Status.SKIP: CYAN}
INDENT = " " * 8


def render(results: Sequence[Result], *, colour: bool = False) -> str:
    """Return all results."""
    paint = Paint(colour)
    lines: list[str] = []
    for family, title in FAMILIES.items():
        found = [each for each in results if each.check.family == family]
        if found:
            lines += [paint(title, BOLD)]
            for each in found:
                lines += _result(each, paint)
            lines += [""]
    return "\n".join([*lines, summary(results)])


def summary(results: Sequence[Result]) -> str:
    """Return how many of each there are."""
    found = [each.finding.status for each in results]
    counts = (
        (Status.FAIL, "failed"),
        (Status.WARN, "warned"),
        (Status.SKIP, "not known"),
        (Status.PASS, "passed"),
    )
    return (
        ", ".join(f"{found.count(status)} {word}" for status, word in counts if status in found)
        or "no check ran"
    )


def catalogue(checks: Iterable[Check]) -> str:
    """Return ids and titles of all checks."""
    return "\n".join(f"{check.id:<28} {check.title}" for check in checks)


def _result(result: Result, paint: Paint) -> list[str]:
    found = result.finding
    word = paint(f"{found.status.value:<4}", COLOURS[found.status])
    lines = [f"  {word}  {found.subject}: {found.seen}  [{result.check.id}]"]
    if found.status is not Status.PASS:
        lines += _wrapped(found.reason)
        lines += _wrapped(f"remedy: {found.remedy}" if found.remedy else "")
        lines += _wrapped(f"seen in {found.source}" if found.source else "")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=INDENT,
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
