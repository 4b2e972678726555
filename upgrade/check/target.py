# SPDX-License-Identifier: MIT
"""Can the kernel that is to be entered do what is needed?"""

from collections.abc import Iterator

from upgrade.check.model import Check, Finding, passed
from upgrade.check.situation import Situation


def kernel(situation: Situation) -> Iterator[Finding]:
    """Look for image and initrd."""
    found = situation.find_target()
    yield passed(str(found.path), found.release)
    yield passed(str(found.initrd), f"initrd, {found.initrd.stat().st_size >> 20} MiB")


CHECKS = (Check("target.kernel", "the kernel's image and initrd are there", kernel),)
