# SPDX-License-Identifier: MIT
"""Room for pages that cannot stay where they are: memory of our own that lies in the ranges for frames.

What we allocate comes from there as long as there is room, as everything movable does. So a straggler that is copied
into our memory has a frame that survives, and the frame map names that one.
"""

import mmap
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from memfs import frames, pagemap
from memfs.erofs import Blocks
from memfs.frames import Piece
from memfs.pagemap import PAGE_BYTES
from upgrade.host import Host

TRIES = 4


class NoRoom(Exception):
    """The ranges have no room for so many pages."""

    def __init__(self, needed: int, found: int) -> None:
        super().__init__(f"{needed} pages have to be copied, the ranges have room for {found}")
        self.found = found


class Spill:
    """Some pages of ours, all of them inside the ranges; ``blocks`` are their blocks."""

    def __init__(self, pages: int, pieces: Sequence[Piece]) -> None:
        """Allocate them.

        :raises NoRoom: if the kernel does not take them from the ranges
        """
        self.pieces = pieces
        self.maps: list[mmap.mmap] = []
        self.usable: list[list[int]] = []
        found = 0
        for _ in range(TRIES):
            if found >= pages or not _is_affordable(pages - found):
                break
            self.maps.append(_allocate(pages - found))
            inside = np.flatnonzero(self._blocks_of(self.maps[-1]) != frames.NOWHERE).tolist()
            self.usable.append(inside)
            found += len(inside)
        if found < pages:
            raise NoRoom(pages, found)
        self.where = list(chain.from_iterable(((m, p) for p in u) for m, u in enumerate(self.usable)))
        self.blocks = self._now()

    def moved(self) -> bool:
        """Tell whether a page has another frame by now."""
        return not np.array_equal(self._now(), self.blocks)

    def pages(self, first: int, count: int) -> Iterator[memoryview]:
        """Yield the memory of ``count`` pages from the page ``first`` on, in pieces, to be written."""
        where = self.where
        start = end = where[first]
        for number, page in where[first + 1 : first + count]:
            if (number, page) != (end[0], end[1] + 1):
                yield self._piece(start, end)
                start = (number, page)
            end = (number, page)
        yield self._piece(start, end)

    def _piece(self, start: tuple[int, int], end: tuple[int, int]) -> memoryview:
        return memoryview(self.maps[start[0]])[start[1] * PAGE_BYTES : (end[1] + 1) * PAGE_BYTES]

    def _now(self) -> Blocks:
        now = [self._blocks_of(m)[u] for m, u in zip(self.maps, self.usable, strict=True)]
        return np.concatenate(now)

    def _blocks_of(self, memory: mmap.mmap) -> Blocks:
        address = int(np.frombuffer(memory, np.uint8).ctypes.data)
        pfns = pagemap.pfns(Path("/proc/self/pagemap"), address, len(memory) // PAGE_BYTES)
        return frames.classify(pfns, self.pieces)


def _is_affordable(pages: int) -> bool:
    """Tell whether so many pages leave enough to everybody else."""
    return pages * PAGE_BYTES < Host().memory()["MemAvailable"] // 2


def _allocate(pages: int) -> mmap.mmap:
    # what is only read has no frame of its own yet: populated by writing (a private mapping that may be written)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return mmap.mmap(-1, pages * PAGE_BYTES, flags)
