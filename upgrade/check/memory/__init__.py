# SPDX-License-Identifier: MIT
"""Is there memory that survives, is it enough, and what of the containers' memory is of another kind?"""

from upgrade.check.memory import pages, ranges
from upgrade.check.model import Check

CHECKS = (
    Check("memory.store", "a memory range survives kexec", ranges.store),
    Check("memory.ranges", "the ranges are where the command line puts them", ranges.layout),
    Check("memory.frames", "page frames can stay where they are", ranges.frames),
    Check("memory.budget", "the containers' memory fits", ranges.budget),
    Check("memory.numa", "the ranges are near the containers' memory", ranges.numa),
    Check("memory.residence", "the containers' pages lie where they can stay", pages.residence),
    Check("memory.swap", "the containers' memory is not swapped out", pages.swap),
    Check("memory.hugetlb", "the new kernel has the huge pages that are needed", pages.hugetlb),
    Check("memory.ksm", "no container counts on merged pages", pages.ksm),
    Check("memory.overcommit", "the new kernel grants the containers' memory", pages.overcommit),
)
