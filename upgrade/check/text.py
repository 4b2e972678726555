# SPDX-License-Identifier: MIT
"""What the checks found, for people: grouped by family, the remedy under what needs one."""

import textwrap
from collections.abc import Iterable, Sequence

from upgrade.check.catalog import FAMILIES
from upgrade.check.model import Check, Finding, Result, Status
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
            for finding, ids in _joined(found).items():
                lines += _finding(finding, ids, paint)
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


def _joined(results: Iterable[Result]) -> dict[Finding, list[str]]:
    """Return each finding once, with the ids that say it: where no container runs, many checks say so."""
    found: dict[Finding, list[str]] = {}
    for each in results:
        ids = found.setdefault(each.finding, [])
        if each.check.id not in ids:
            ids.append(each.check.id)
    return found


def _finding(found: Finding, ids: Sequence[str], paint: Paint) -> list[str]:
    word = paint(f"{found.status.value:<4}", COLOURS[found.status])
    named = f"  [{ids[0]}]" if len(ids) == 1 else ""
    lines = [f"  {word}  {found.subject}: {found.seen}{named}"]
    if found.status is not Status.PASS:
        lines += _wrapped(found.reason)
        lines += _wrapped(f"remedy: {found.remedy}" if found.remedy else "")
        lines += _wrapped(f"seen in {found.source}" if found.source else "")
    if len(ids) > 1:
        lines += _wrapped(f"[{', '.join(ids)}]")
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
