# SPDX-License-Identifier: MIT
"""Which page of a dump belongs where in a task: the lazy runs of its pagemap, and what the task does to them.

A page that CRIU delays (``PE_LAZY``) is known by its number in ``pages-N.img``. Its address may change while the
restore goes on (mremap), and it may lose its meaning (munmap, madvise): then nothing may bring it back.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from upgrade import pagemaps
from upgrade.errors import UpgradeError
from upgrade.pagemaps import PE_LAZY, PE_PARENT, PE_PRESENT
from upgrade.userfaultfd import (
    PAGE_BYTES,
    UFFD_EVENT_REMAP,
    UFFD_EVENT_REMOVE,
    UFFD_EVENT_UNMAP,
    Message,
)

# Beyond that many runs at once sorting anew is cheaper than moving the rest for each.
FEW_RUNS = 64


class Run(NamedTuple):
    """So many pages of a task from ``address`` on, in the pages file from page ``page`` on."""

    address: int
    page: int
    pages: int

    @property
    def end(self) -> int:
        """Return the address behind it."""
        return self.address + self.pages * PAGE_BYTES

    def part(self, start: int, end: int) -> "Run":
        """Return what lies between two addresses."""
        start, end = max(start, self.address), min(end, self.end)
        return Run(start, self.page + (start - self.address) // PAGE_BYTES, (end - start) // PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class Pagemap:
    """What a ``pagemap-PID.img`` says: the name of its pages file, how many pages it has, which runs are lazy."""

    pages_file: str
    pages: int
    lazy: tuple[Run, ...]

    @property
    def lazy_pages(self) -> int:
        """Return how many pages are lazy."""
        return sum(run.pages for run in self.lazy)


def read_pagemap(path: Path) -> Pagemap:
    """Read a pagemap.

    :raises UpgradeError: if it is none, or its pages are not all in one pages file
    """
    head, entries = pagemaps.read(path)
    runs = []
    page = 0
    for address, count, flags in entries:
        if not count:
            raise UpgradeError(
                "an entry without pages: written by a newer CRIU than pycriu is",
                subject=str(path),
                hint="install the python3-pycriu of the same version as criu",
            )
        if flags & PE_PARENT or (flags & PE_LAZY and not flags & PE_PRESENT):
            raise UpgradeError("pages of this dump are elsewhere", subject=str(path))
        if flags & PE_LAZY:
            runs.append(Run(address, page, count))
        if flags & PE_PRESENT:
            page += count
    return Pagemap(head, page, tuple(runs))


class Layout:
    """Where the lazy pages of a task belong now."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = sorted(runs)
        self._by_page = sorted((run.page, run.address, run.pages) for run in self._runs)

    def copy(self) -> "Layout":
        """Return a layout of the same runs, for the child of a fork."""
        other = Layout(())
        other._runs, other._by_page = self._runs.copy(), self._by_page.copy()
        return other

    def runs(self) -> list[Run]:
        """Return the runs, by address."""
        return self._runs.copy()

    def at(self, address: int) -> Run | None:
        """Return the run that has an address."""
        index = self._index(address)
        if index < len(self._runs) and self._runs[index].address <= address:
            return self._runs[index]
        return None

    def hole(self, start: int, end: int, address: int) -> tuple[int, int]:
        """Return the part of a range that has an ``address`` of no run in it, and no page of a run."""
        index = self._index(address)
        if index:
            start = max(start, self._runs[index - 1].end)
        if index < len(self._runs):
            end = min(end, self._runs[index].address)
        return start, end

    def next(self, page: int, end: int) -> Run | None:
        """Return the first run of pages ``page`` to ``end``, and of a longer one what lies between them."""
        index = bisect_right(self._by_page, (page, 1 << 64))
        if index and self._by_page[index - 1][0] + self._by_page[index - 1][2] > page:
            index -= 1
        if page >= end or index == len(self._by_page) or self._by_page[index][0] >= end:
            return None
        first, address, count = self._by_page[index]
        skipped = max(page - first, 0)
        return Run(address + skipped * PAGE_BYTES, first + skipped, min(first + count, end) - first - skipped)

    def apply(self, message: Message) -> bool:
        """Follow an event; tells whether it changed anything."""
        if message.event in (UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP):
            return self.remove(message.first, message.second)
        if message.event == UFFD_EVENT_REMAP:
            return self.move(message.first, message.second, message.third)
        return False

    def remove(self, start: int, end: int) -> bool:
        """Forget the pages between two addresses; tells whether there were any."""
        return bool(self._cut(start, end))

    def move(self, source: int, target: int, length: int) -> bool:
        """Follow mremap(2); tells whether there were pages at the old or the new place."""
        moved = self._cut(source, source + length)
        replaced = self._cut(target, target + length)
        self._insert([run._replace(address=run.address - source + target) for run in moved])
        return bool(moved or replaced)

    def _index(self, address: int) -> int:
        """Return the index of the first run that ends behind an address."""
        index = bisect_right(self._runs, (address, 1 << 64, 0))
        return index - 1 if index and self._runs[index - 1].end > address else index

    def _cut(self, start: int, end: int) -> list[Run]:
        first = last = self._index(start)
        while last < len(self._runs) and self._runs[last].address < end:
            last += 1
        touched = self._runs[first:last]
        if not touched:
            return []
        left = [run.part(0, start) for run in touched[:1] if run.address < start]
        left += [run.part(end, run.end) for run in touched[-1:] if run.end > end]
        self._runs[first:last] = left
        if len(touched) > FEW_RUNS:
            self._by_page = sorted((run.page, run.address, run.pages) for run in self._runs)
        else:
            for run in touched:
                del self._by_page[bisect_left(self._by_page, (run.page, run.address, run.pages))]
            for run in left:
                insort(self._by_page, (run.page, run.address, run.pages))
        return [run.part(start, end) for run in touched]

    def _insert(self, runs: list[Run]) -> None:
        if not runs:
            return
        index = bisect_left(self._runs, runs[0])
        self._runs[index:index] = runs
        if len(runs) > FEW_RUNS:
            self._by_page = sorted((run.page, run.address, run.pages) for run in self._runs)
        else:
            for run in runs:
                insort(self._by_page, (run.page, run.address, run.pages))
