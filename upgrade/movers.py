# SPDX-License-Identifier: MIT
"""What moves page frames by itself: quieted before the frames are recorded, as it was before on undo.

None of this is a promise that nothing moves: the last act before the jump is to look at every frame again.
"""

from collections.abc import Mapping

from upgrade.host import Host

# Documentation/admin-guide/mm and Documentation/admin-guide/sysctl/vm.rst; each with the value that stops it
KNOBS: Mapping[str, str] = {
    "/proc/sys/vm/compaction_proactiveness": "0",
    "/proc/sys/vm/swappiness": "0",
    "/proc/sys/kernel/numa_balancing": "0",
    "/sys/kernel/mm/ksm/run": "0",  # what is merged stays merged
    "/sys/kernel/mm/transparent_hugepage/defrag": "never",  # compaction on behalf of a page fault
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag": "0",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "4294967295",
    "/sys/kernel/mm/numa/demotion_enabled": "false",
    "/sys/module/damon_reclaim/parameters/enabled": "N",
    "/sys/module/damon_lru_sort/parameters/enabled": "N",
}


def read(host: Host) -> dict[str, str]:
    """Return how the knobs of this kernel stand, those that are not at rest already."""
    found = {}
    for knob, rest in KNOBS.items():
        value = host.read_or(knob, rest)
        if "[" in value:  # one of several words: always defer [madvise] never
            value = value.partition("[")[2].partition("]")[0]
        if value != rest:
            found[knob] = value
    return found


def quiet(host: Host, before: Mapping[str, str]) -> None:
    """Stop what ``read`` found."""
    for knob in before:
        host.write(knob, KNOBS[knob])


def restore(host: Host, before: Mapping[str, str]) -> None:
    """Let everything move again as it did.

    :raises OSError: if a knob cannot be set, when all others are
    """
    failed: OSError | None = None
    for knob, value in before.items():
        try:
            host.write(knob, value)
        except OSError as e:
            failed = failed or e
    if failed is not None:
        raise failed
