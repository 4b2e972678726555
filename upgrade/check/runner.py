# SPDX-License-Identifier: MIT
"""Runs the checks: what they raise is a finding, too."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from upgrade.check.model import Check, Finding, Result, Status, failed, skipped
from upgrade.check.situation import Situation, Unknown
from upgrade.errors import ExitStatus, Refusal, UpgradeError, UsageError

NEEDS_ROOT = "needs root"


def chosen(checks: Sequence[Check], only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """Return the checks that ids, families (``kexec``) and patterns (``target.*``) leave.

    :raises UsageError: if one of them means no check
    """
    for pattern in (*only, *skip):
        if not any(_matches(check, pattern) for check in checks):
            raise UsageError(
                "no check has this id", subject=pattern, hint="seamless-upgrade check --list names all"
            )
    return [
        check
        for check in checks
        if (not only or any(_matches(check, p) for p in only)) and not any(_matches(check, p) for p in skip)
    ]


def run(checks: Iterable[Check], situation: Situation) -> Iterator[Result]:
    """Yield what the checks say, in their order."""
    for check in checks:
        for finding in _findings(check, situation):
            yield Result(check, finding)


def verdict(results: Sequence[Result]) -> ExitStatus:
    """Return the exit status: refused, not known for want of root, or ready."""
    found = [each.finding for each in results]
    against = {each.exit_status for each in found if each.status is Status.FAIL}
    if against:
        return against.pop() if len(against) == 1 else ExitStatus.REFUSED
    if any(each.status is Status.SKIP and each.reason == NEEDS_ROOT for each in found):
        return ExitStatus.NOT_PRIVILEGED
    return ExitStatus.DONE


def refuse(results: Iterable[Result]) -> None:
    """Raise a refusal that names everything that failed, if anything did."""
    against = [each for each in results if each.finding.status is Status.FAIL]
    if not against:
        return
    first = against[0].finding
    others = [f"{each.finding.subject}: {each.finding.seen}" for each in against[1:]]
    raise Refusal(
        "; ".join([first.seen, *others]),
        subject=first.subject,
        hint=f"{first.remedy} (seamless-upgrade check has the whole list)",
    )


def _matches(check: Check, pattern: str) -> bool:
    return check.family == pattern or fnmatchcase(check.id, pattern)


def _findings(check: Check, situation: Situation) -> Iterator[Finding]:
    try:
        yield from check.run(situation)
    except UpgradeError as e:
        if e.status is ExitStatus.NOT_PRIVILEGED:
            yield skipped(e.subject or "host", e.message, reason=NEEDS_ROOT, remedy=e.hint or "")
        else:
            status = ExitStatus.REFUSED if e.status is ExitStatus.FAILED else e.status
            found = failed(
                e.subject or "host", e.message, reason=f"not so: {check.title}", remedy=e.hint or ""
            )
            yield replace(found, exit_status=status)
    except Unknown as e:
        yield skipped("-", str(e), reason="cannot be looked at without it")
    except PermissionError as e:
        source = str(e.filename or "")
        yield skipped("host", f"{e.strerror}", source=source, reason=NEEDS_ROOT, remedy="run it with sudo")
    except OSError as e:
        source = str(e.filename or "")
        yield skipped("host", f"{e.strerror or e}", source=source, reason="could not be read")
