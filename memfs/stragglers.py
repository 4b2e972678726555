# SPDX-License-Identifier: MIT
"""Why pages were left where they are: what the kernel says of their frames.

Documentation/admin-guide/mm/pagemap.rst: ``/proc/kpageflags`` and ``/proc/kpagecount``.
"""

from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memfs import residency
from memfs.pagemap import Pfns
from memfs.ranges import Range
from memfs.residency import GONE, inside

SHARED = "mapped by several processes"
LOCKED = "locked in memory"
HUGE = "huge page of hugetlbfs"
NO_SWAP = "its control group may not swap"
NO_ROOM = "no room in the range"
LIMIT = "more than was to be moved"
BUSY = "in use by the kernel or a device"

# include/uapi/linux/kernel-page-flags.h
_KPF_HUGE = 1 << 17
_KPF_UNEVICTABLE = 1 << 18
_KPF_KSM = 1 << 21


def reasons(
    pids: Iterable[int],
    spans: Sequence[Range],
    stopped: str | None = None,
    swapless: Container[int] = (),
    proc: Path = Path("/proc"),
) -> dict[str, int]:
    """Return why pages lie outside of ranges, in pages; a frame of several processes counts once.

    :param stopped: why gathering ended before its time
    :param swapless: processes whose control group may not swap
    """
    found: dict[str, int] = {}
    here = inside(spans)
    seen = np.zeros(0, np.uint64)
    for pid in pids:
        frames = [np.zeros(0, np.uint64)]
        try:
            for places in residency.places(pid, proc):
                frames.append(places.pfns[~here(places.pfns) & (places.pfns != 0)])
        except GONE:
            continue
        outside = np.setdiff1d(np.concatenate(frames), seen)
        seen = np.union1d(seen, outside)
        flags = _of_frames(proc / "kpageflags", outside)
        count = _of_frames(proc / "kpagecount", outside)
        huge = flags & np.uint64(_KPF_HUGE) != 0
        locked = ~huge & (flags & np.uint64(_KPF_UNEVICTABLE) != 0)
        shared = ~huge & ~locked & (count > 1)
        for reason, which in (
            (HUGE, huge),
            (LOCKED, locked),
            (SHARED, shared),
            (NO_SWAP if pid in swapless else stopped or BUSY, ~(huge | locked | shared)),
        ):
            if which.any():
                found[reason] = found.get(reason, 0) + int(np.count_nonzero(which))
    return found


def can_swap(pfns: Pfns, merged: NDArray[np.bool_], proc: Path = Path("/proc")) -> NDArray[np.bool_]:
    """Tell of each frame whether its page may be swapped; frames ascend.

    Pages that KSM has merged count as such that may not: they would come back as one page for each process.

    :param merged: which of them belong to processes of which KSM has merged something. Only of these its flag is
        believed: Linux 6.12 has it for every anonymous page (fs/proc/page.c, stable_page_flags(), takes the bits of
        PAGE_MAPPING_ANON for those of PAGE_MAPPING_KSM)
    """
    flags = _of_frames(proc / "kpageflags", pfns)
    fixed = flags & np.uint64(_KPF_HUGE | _KPF_UNEVICTABLE) != 0
    found: NDArray[np.bool_] = ~(fixed | merged & (flags & np.uint64(_KPF_KSM) != 0))
    return found


def is_merged(pid: int, proc: Path = Path("/proc")) -> bool:
    """Tell whether KSM has merged pages of a process (Linux 5.19)."""
    try:
        return int((proc / str(pid) / "ksm_merging_pages").read_text()) > 0
    except OSError:
        return False


def _of_frames(file: Path, pfns: Pfns) -> NDArray[np.uint64]:
    """Return what ``/proc/kpageflags`` or ``/proc/kpagecount`` say of some frames, ascending; 8 bytes each."""
    found = np.zeros(len(pfns), np.uint64)
    if not len(pfns):
        return found
    with file.open("rb", buffering=0) as f:
        group = pfns // np.uint64(512)
        for number in np.unique(group).tolist():
            f.seek(number * 4096)
            some = np.frombuffer(f.read(4096), np.uint64)
            first, last = np.searchsorted(group, [number, number + 1])
            found[first:last] = some[(pfns[first:last] % np.uint64(512)).astype(np.int64)]
    return found
