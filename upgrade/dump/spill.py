# SPDX-License-Identifier: MIT
"""Room for pages that cannot stay where they are: memory of our own that lies in the ranges for frames.

What we allocate comes from there as long as there is room, as everything movable does. So a straggler that is copied
into our memory has a frame that survives, and the frame map names that one.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memfs import frames, pagemap
from memfs.frames import Piece
from memfs.pagemap import PAGE_BYTES, Pages, Pfns

TRIES = 4


class NoRoom(Exception):
    """The ranges have no room for so many pages."""


class Spill:
    """Some pages of ours, all of them inside the ranges."""

    def __init__(self, pages: int, pieces: Sequence[Piece]) -> None:
        """Allocate them.

        :raises NoRoom: if the kernel does not take them from the ranges
        """
        self.maps: list[mmap.mmap] = []
        usable: list[tuple[int, Pages]] = []
        found = 0
        for _ in range(TRIES):
            if found >= pages:
                break
            self.maps.append(_allocate(pages - found))
            inside = np.flatnonzero(frames.classify(_frames(self.maps[-1]), pieces) != frames.NOWHERE)
            usable.append((len(self.maps) - 1, inside))
            found += len(inside)
        if found < pages:
            raise NoRoom(f"{pages} pages have to be copied, the ranges have room for {found}")
        self.where = [(number, int(page)) for number, inside in usable for page in inside][:pages]

    def frames(self) -> Pfns:
        """Return the frame of each page as it is now."""
        now = [_frames(each) for each in self.maps]
        return np.array([now[number][page] for number, page in self.where], np.uint64)

    def page(self, index: int) -> memoryview:
        """Return a page, to be written."""
        number, page = self.where[index]
        return memoryview(self.maps[number])[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]


def _allocate(pages: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return mmap.mmap(-1, pages * PAGE_BYTES, flags)


def _frames(memory: mmap.mmap) -> Pfns:
    address = int(np.frombuffer(memory, np.uint8).ctypes.data)
    return pagemap.pfns(Path("/proc/self/pagemap"), address, len(memory) // PAGE_BYTES)
