# SPDX-License-Identifier: MIT
"""Does this kernel enter another one at all?"""

from collections.abc import Iterator

from upgrade.check.model import Check, Finding, passed, warned
from upgrade.check.situation import Situation
from upgrade.kexec.load import is_loaded

LOADED = "/sys/kernel/kexec_loaded"


def loaded(situation: Situation) -> Iterator[Finding]:
    """Look for a kernel that somebody else loaded."""
    if is_loaded(situation.host):
        yield warned(
            "loaded kernel",
            "1",
            source=LOADED,
            reason="a kernel is loaded already; an upgrade replaces it",
            remedy="kexec -u if nobody needs it",
        )
    else:
        yield passed("loaded kernel", "0", LOADED)


CHECKS = (Check("kexec.loaded", "no other kernel is loaded", loaded),)
