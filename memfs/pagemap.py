# SPDX-License-Identifier: MIT
"""Page frames of a process, from ``/proc/PID/pagemap`` (Documentation/admin-guide/mm/pagemap.rst).

A frame is its number (PFN): its physical address divided by 4096. 64 bits each, since physical addresses may lie
above the 16 TiB that 32 bits reach.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 4096

Pfns: TypeAlias = NDArray[np.uint64]
Pages: TypeAlias = NDArray[np.int64]

_ENTRY_BYTES = 8
_PRESENT_BIT = np.uint64(63)
_PFN_MASK = np.uint64((1 << 55) - 1)
_AT_ONCE = 1 << 17  # pages, 512 MiB of memory: entries and what is calculated with them stay in the cache


class PagemapEnds(Exception):
    """The kernel has no (more) entries: the process is gone, or the address lies behind its address space."""


class PagesHidden(Exception):
    """The kernel hides the frames: CAP_SYS_ADMIN is missing."""


def pfns(pagemap: Path | int, vaddr: int, npages: int) -> Pfns:
    """Return the frames of ``npages`` pages from the address ``vaddr`` on; 0 where none is present (or swapped).

    :param pagemap: ``/proc/PID/pagemap`` or a descriptor of it
    :raises PagemapEnds: if there are fewer pages
    :raises PagesHidden: without CAP_SYS_ADMIN
    """
    return pfns_of_runs(pagemap, [(vaddr, npages)])


def pfns_of_runs(pagemap: Path | int, runs: Iterable[tuple[int, int]]) -> Pfns:
    """Return the frames of several runs one behind the other, as CRIU has their pages in ``pages-N.img``.

    Takes 8 bytes a page and less than 2 MiB beside it.

    :param runs: address in bytes and number of pages of each
    :raises PagemapEnds: if there are fewer pages
    :raises PagesHidden: without CAP_SYS_ADMIN
    :raises ValueError: if a run does not begin with a page
    """
    wanted = list(runs)
    for vaddr, npages in wanted:
        if vaddr % PAGE_BYTES or vaddr < 0 or npages < 0:
            raise ValueError(f"no run of pages: {npages} from {vaddr:#x}")
    found = np.empty(sum(npages for _, npages in wanted), np.uint64)
    fd = pagemap if isinstance(pagemap, int) else os.open(pagemap, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 0
        for vaddr, npages in wanted:
            _read(fd, vaddr, found[at : at + npages])
            at += npages
    finally:
        if not isinstance(pagemap, int):
            os.close(fd)
    return found


def changed(old: Pfns, new: Pfns) -> Pages:
    """Return the indexes of the pages whose frame is another in the second of two readings, ascending.

    Takes 1 byte a page and 8 a changed one.
    """
    if old.shape != new.shape:
        raise ValueError(f"readings of {len(old)} and {len(new)} pages")
    return np.flatnonzero(old != new)


def _read(fd: int, vaddr: int, found: Pfns) -> None:
    for at in range(0, len(found), _AT_ONCE):
        some = found[at : at + _AT_ONCE]
        left = some.data.cast("B")
        offset = (vaddr // PAGE_BYTES + at) * _ENTRY_BYTES
        while left:
            # the kernel returns whole entries only
            done = os.preadv(fd, [left], offset)
            if done == 0:
                raise PagemapEnds(f"no pages from {offset // _ENTRY_BYTES * PAGE_BYTES:#x} on")
            left = left[done:]
            offset += done
        present = some >> _PRESENT_BIT
        some &= _PFN_MASK
        # frame 0 belongs to the firmware
        if (present > some).any():
            raise PagesHidden("the kernel shows no frame numbers without CAP_SYS_ADMIN")
        some *= present
