# SPDX-License-Identifier: MIT
"""Is this the moment, and is everything installed?"""

from collections.abc import Iterator

from upgrade import plan
from upgrade.check.model import Check, Finding, passed
from upgrade.check.situation import Situation


def programs(situation: Situation) -> Iterator[Finding]:
    """Look for the programs that an upgrade calls."""
    wanted = plan.PROGRAMS if situation.request.pages == "copy" else (*plan.PROGRAMS, *plan.FRAMES_PROGRAMS)
    for program in wanted:
        plan.installed(program)
    yield passed("programs", f"{', '.join(wanted)} are installed")


def unfinished(situation: Situation) -> Iterator[Finding]:
    """Look for an upgrade that has not ended."""
    plan.refuse_unfinished(situation.host)
    yield passed("last upgrade", "has ended")


CHECKS = (
    Check("host.programs", "the programs that are needed are installed", programs),
    Check("host.session", "no other upgrade goes on", unfinished),
)
