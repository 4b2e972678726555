# SPDX-License-Identifier: MIT
"""Runs the checks: what they raise is a finding, too."""

import difflib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from upgrade.check.model import Check, Finding, Result, Status, failed, skipped
from upgrade.check.situation import Situation, Unknown
from upgrade.errors import ExitStatus, Interrupted, Refusal, UpgradeError, UsageError

log = logging.getLogger(__name__)

NEEDS_ROOT = "needs root"


def chosen(checks: Sequence[Check], only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """Return the checks that ids, families (``kexec``) and patterns (``target.*``) leave.

    :raises UsageError: if one of them means no check
    """
    for pattern in (*only, *skip):
        if not any(_matches(check, pattern) for check in checks):
            raise UsageError(
                "no check has this id",
                subject=pattern,
                hint=f"{_near(checks, pattern)}check --list names all",
            )
    return [
        check
        for check in checks
        if (not only or any(_matches(check, p) for p in only)) and not any(_matches(check, p) for p in skip)
    ]


def run(
    checks: Iterable[Check], situation: Situation, durations: dict[str, int] | None = None
) -> Iterator[Result]:
    """Yield what the checks say, in their order.

    :param durations: is told by id how long each took, in nanoseconds; what several need counts for the first of them
    """
    for check in checks:
        began = time.monotonic_ns()
        found = list(_findings(check, situation))
        if durations is not None:
            durations[check.id] = time.monotonic_ns() - began
        situation.refused.update(each.subject for each in found if each.status is Status.FAIL)
        for finding in found:
            yield Result(check, finding)


def verdict(results: Iterable[Result]) -> ExitStatus:
    """Return the exit status: wrong usage, refused, not known for want of root, or ready."""
    found = [each.finding for each in results]
    against = {each.exit_status for each in found if each.status is Status.FAIL}
    if ExitStatus.USAGE in against:  # the other answers are about something that was not meant
        return ExitStatus.USAGE
    if against:
        return against.pop() if len(against) == 1 else ExitStatus.REFUSED
    if any(each.status is Status.SKIP and each.reason == NEEDS_ROOT for each in found):
        return ExitStatus.NOT_PRIVILEGED
    return ExitStatus.DONE


def refusal(results: Sequence[Result]) -> UpgradeError | None:
    """Return the error that names everything that stands against an upgrade; None if nothing does."""
    status = verdict(results)
    if status is ExitStatus.NOT_PRIVILEGED:
        return UpgradeError("some checks need root", hint="run it with sudo", status=status)
    against = [each.finding for each in results if each.finding.status is Status.FAIL]
    if not against:
        return None
    against.sort(key=lambda each: each.exit_status is not status)  # stable: what gave the status comes first
    first, *others = against
    more = " (seamless-upgrade check has the whole list)" if others else ""
    error = Refusal(
        "; ".join([first.seen, *(f"{each.subject}: {each.seen}" for each in others)]),
        subject=first.subject,
        hint=f"{first.remedy}{more}",
    )
    error.status = status
    return error


def refuse(results: Iterable[Result]) -> None:
    """Raise a refusal that names everything that failed, if anything did; what is not known is no refusal."""
    against = refusal([each for each in results if each.finding.status is Status.FAIL])
    if against:
        raise against


def _matches(check: Check, pattern: str) -> bool:
    return check.family == pattern or fnmatchcase(check.id, pattern)


def _near(checks: Sequence[Check], pattern: str) -> str:
    known = [*(check.id for check in checks), *(check.family for check in checks)]
    near = difflib.get_close_matches(pattern, known, 1)
    return f"did you mean {near[0]}? seamless-upgrade " if near else "seamless-upgrade "


def _findings(check: Check, situation: Situation) -> Iterator[Finding]:
    said = False
    try:
        for finding in check.run(situation):
            said = True
            yield finding
    except Interrupted:  # somebody aborts the run that asks
        raise
    except Exception as e:
        yield _of_exception(check, e)
    else:
        if not said:
            yield skipped(check.title, "nothing was there to look at", reason="there is no answer")


def _of_exception(check: Check, error: Exception) -> Finding:
    match error:
        case UpgradeError(__cause__=PermissionError() as cause) if os.geteuid() != 0:
            return _unreadable(check, cause)
        case UpgradeError(status=ExitStatus.NOT_PRIVILEGED):
            return skipped(
                error.subject or check.title, error.message, reason=NEEDS_ROOT, remedy=error.hint or ""
            )
        case UpgradeError():
            status = ExitStatus.REFUSED if error.status is ExitStatus.FAILED else error.status
            found = failed(
                error.subject or "host",
                error.message,
                reason=f"not so: {check.title}",
                remedy=error.hint or "",
            )
            return replace(found, exit_status=status)
        case Unknown():
            return skipped(error.subject or check.title, str(error), reason="cannot be looked at without it")
        case OSError():
            return _unreadable(check, error)
        case _:  # a bug: it must not stand between a user and all other answers
            log.debug("%s", check.id, exc_info=error)
            return skipped(
                check.title,
                f"{type(error).__name__}: {error}",
                reason=f"{check.id} itself is wrong or met something that it does not know",
                remedy="please report it, with the output of seamless-upgrade check --debug",
            )


def _unreadable(check: Check, error: OSError) -> Finding:
    """Return a finding for a file that cannot be read. Root is turned away too: by lockdown, or in a container."""
    source = str(error.filename or "")
    seen = f"{source}: {error.strerror or error}" if source else f"{error.strerror or error}"
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return skipped(check.title, seen, source=source, reason=NEEDS_ROOT, remedy="run it with sudo")
    return skipped(check.title, seen, source=source, reason="could not be read")
