# SPDX-License-Identifier: MIT
"""Page frames of a process, from ``/proc/PID/pagemap`` (Documentation/admin-guide/mm/pagemap.rst).

A frame is its number (PFN): its physical address divided by 4096. 64 bits each, since physical addresses may lie
above the 16 TiB that 32 bits reach.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
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
# Short runs that lie close to one another are read with one call, and what lies between them is thrown away.
_SHORT, _CLOSE = 512, 64  # pages


class PagemapEnds(Exception):
    """The kernel has no (more) entries: the process is gone, or the address lies behind its address space."""


class PagesHidden(Exception):
    """The kernel hides the frames: CAP_SYS_ADMIN is missing."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of pages, one behind the other: address in bytes and number of pages of each."""

    starts: Pages
    counts: Pages

    @classmethod
    def of(cls, runs: Iterable[tuple[int, int]]) -> "Runs":
        """Return runs given as pairs."""
        both = np.array(list(runs), np.int64).reshape(-1, 2)
        return cls(both[:, 0].copy(), both[:, 1].copy())

    @property
    def pages(self) -> int:
        """Return how many pages there are in all runs."""
        return int(self.counts.sum())

    def addresses(self, pages: Pages) -> Pages:
        """Return the addresses of some pages, each given by how many pages come before it in all runs."""
        ends = np.cumsum(self.counts)
        run = np.searchsorted(ends, pages, side="right")
        found: Pages = self.starts[run] + (pages - (ends[run] - self.counts[run])) * PAGE_BYTES
        return found


def pfns(pagemap: Path | int, vaddr: int, npages: int) -> Pfns:
    """Return the frames of ``npages`` pages from the address ``vaddr`` on; 0 where none is present (or swapped).

    :param pagemap: ``/proc/PID/pagemap`` or a descriptor of it
    :raises PagemapEnds: if there are fewer pages
    :raises PagesHidden: without CAP_SYS_ADMIN
    """
    return pfns_of_runs(pagemap, [(vaddr, npages)])


def pfns_of_runs(pagemap: Path | int, runs: Runs | Iterable[tuple[int, int]]) -> Pfns:
    """Return the frames of several runs one behind the other, as CRIU has their pages in ``pages-N.img``.

    Takes 8 bytes a page and 40 bytes a run, and less than 4 MiB beside it.

    :param runs: address in bytes and number of pages of each
    :raises PagemapEnds: if there are fewer pages
    :raises PagesHidden: without CAP_SYS_ADMIN
    :raises ValueError: if a run does not begin with a page
    """
    wanted = runs if isinstance(runs, Runs) else Runs.of(runs)
    firsts, counts = wanted.starts // PAGE_BYTES, wanted.counts
    bad = np.flatnonzero((firsts * PAGE_BYTES != wanted.starts) | (wanted.starts < 0) | (counts < 0))
    if len(bad):
        raise ValueError(f"no run of pages: {counts[bad[0]]} from {wanted.starts[bad[0]]:#x}")
    found = np.empty(wanted.pages, np.uint64)
    fd = pagemap if isinstance(pagemap, int) else os.open(pagemap, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = 0
        for run, end in pairwise(_windows(firsts, counts)):
            pages = int(counts[run:end].sum())
            _read_window(fd, firsts[run:end], counts[run:end], found[at : at + pages])
            at += pages
    finally:
        if not isinstance(pagemap, int):
            os.close(fd)
    return found


def _windows(firsts: Pages, counts: Pages) -> list[int]:
    """Return the numbers of the runs with which a window begins, and the number behind the last."""
    if not len(firsts):
        return [0]
    apart = firsts[1:] - (firsts[:-1] + counts[:-1])
    long = counts > _SHORT
    new = (apart < 0) | (apart > _CLOSE) | long[1:] | long[:-1]
    new |= firsts[1:] // _AT_ONCE != firsts[:-1] // _AT_ONCE
    return [0, *(np.flatnonzero(new) + 1).tolist(), len(firsts)]


def _read_window(fd: int, firsts: Pages, counts: Pages, found: Pfns) -> None:
    start = int(firsts[0])
    if len(firsts) == 1:
        _read(fd, start * PAGE_BYTES, found)
        return
    window = np.empty(int(firsts[-1] + counts[-1]) - start, np.uint64)
    _read(fd, start * PAGE_BYTES, window)
    before = np.cumsum(counts) - counts
    found[:] = window[np.repeat(firsts - start - before, counts) + np.arange(len(found))]


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
