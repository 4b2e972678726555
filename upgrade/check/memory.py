# SPDX-License-Identifier: MIT
"""Is there memory that survives, and is it enough?"""

from collections.abc import Iterator

from upgrade import plan
from upgrade.check.model import Check, Finding, passed, warned
from upgrade.check.situation import Situation

CMDLINE = "/proc/cmdline"


def store(situation: Situation) -> Iterator[Finding]:
    """Look for range M."""
    found = plan.find_store(situation.host, situation.request.append)
    yield passed(str(found), "reserved on the command line, and known to the kernel", "/proc/iomem")


def frames(situation: Situation) -> Iterator[Finding]:
    """Look for the ranges in which page frames stay."""
    found, warnings = plan.find_frames(situation.host, situation.request)
    for each in found:
        yield passed(str(each), "online as ordinary movable memory", "/sys/devices/system/memory")
    for text in warnings:
        yield warned(
            "frames ranges",
            text,
            source=CMDLINE,
            reason="pages are copied instead of staying where they are",
            remedy="journalctl -u seamless-upgrade-frames",
        )
    if not found and not warnings:
        yield warned(
            "frames ranges",
            "none" if situation.request.pages != "copy" else "not used: --pages copy",
            source=CMDLINE,
            reason="the containers' memory is copied: that takes longer, and twice the memory",
            remedy="set a second memmap= range aside, as large as the containers' memory",
        )


def budget(situation: Situation) -> Iterator[Finding]:
    """Compare the containers' memory with the ranges and with what the new kernel has."""
    host = situation.host
    held = plan.refuse_too_large(
        host,
        list(situation.containers),
        plan.find_store(host, situation.request.append),
        plan.find_frames(host, situation.request)[0],
    )
    yield passed("containers' memory", f"{held >> 20} MiB, which fits", "/sys/fs/cgroup/*/memory.stat")


CHECKS = (
    Check("memory.store", "a memory range survives kexec", store),
    Check("memory.frames", "page frames can stay where they are", frames),
    Check("memory.budget", "the containers' memory fits", budget),
)
