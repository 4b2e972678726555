# SPDX-License-Identifier: MIT
"""The kernel to enter as such."""

from collections.abc import Iterator

from upgrade.check.model import Finding, passed, warned
from upgrade.check.situation import Situation
from upgrade.kexec import installed


def kernel(situation: Situation) -> Iterator[Finding]:
    """Look for image and initrd."""
    found = situation.find_target()
    yield passed(str(found.path), found.release)
    yield passed(str(found.initrd), f"initrd, {found.initrd.stat().st_size >> 20} MiB")


def downgrade(situation: Situation) -> Iterator[Finding]:
    """Compare with the kernel that runs."""
    running, target = situation.host.release(), situation.target.release
    if installed.order(target) < installed.order(running):
        yield warned(
            target,
            f"is older than {running}, which runs",
            source="/proc/sys/kernel/osrelease",
            reason="programs that found a system call or a file system feature of the newer kernel go on using it, "
            "and the kernel itself loses the fixes in between",
            remedy="choose a newer kernel, or rehearse this way back first: seamless-upgrade rehearse",
        )
    else:
        yield passed(target, f"not older than {running}", "/proc/sys/kernel/osrelease")
