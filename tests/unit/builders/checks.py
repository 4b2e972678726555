# SPDX-License-Identifier: MIT
"""Checks and situations made by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from upgrade.check.model import Check, Finding, Result, Status
from upgrade.check.situation import Situation
from upgrade.config import Config
from upgrade.host import Host
from upgrade.request import Request


def situation(host: Host | None = None, **options: Any) -> Situation:
    """Return an upgrade of a host; ``options`` are those of the request."""
    return Situation(host or Host(Path("/nowhere")), Request(**options), Config())


def saying(*findings: Finding | Exception, id: str = "kexec.fake") -> Check:
    """Return a check that yields findings and raises exceptions."""

    def run(_situation: Situation) -> Iterator[Finding]:
        for each in findings:
            if isinstance(each, Exception):
                raise each
            yield each

    return Check(id, "all is well", run)


def findings(run: Callable[[Situation], Any], where: Situation) -> list[Finding]:
    """Return what a check's function yields."""
    return list(run(where))


def only(run: Callable[[Situation], Any], where: Situation, status: Status) -> Finding:
    """Return the one finding that a check yields: it has this status, and says what there is to say."""
    (found,) = findings(run, where)
    assert found.status is status, found
    assert complete(found), found
    return found


def complete(found: Finding) -> bool:
    """Tell whether a finding says everything that its status needs."""
    if not (found.subject and found.seen):
        return False
    return found.status is Status.PASS or bool(found.reason and (found.remedy or found.status is Status.SKIP))


def result(found: Finding, id: str = "kexec.fake") -> Result:
    """Return a finding as a result."""
    return Result(saying(found, id=id), found)
