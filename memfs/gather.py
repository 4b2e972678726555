# SPDX-License-Identifier: MIT
"""Move pages of running processes into ranges of ZONE_MOVABLE memory.

A page that is paged out and read again gets a new frame, and the kernel takes frames for such pages from ZONE_MOVABLE
as long as there are any. So: in small steps, page out what lies elsewhere, and read it back at once. A process that
touches such a page meanwhile waits for one copy from memory, some microseconds.

What several processes have in their page tables, as after fork(2), the kernel does not page out at their request.
DAMON does (see :mod:`memfs.damon`), unless somebody else uses it; shared memory is then copied into huge pages, where
it can be, and what fork(2) shares stays where it is.

Needs a swap device that is memory (see :mod:`memfs.swap`) and room in the ranges (see :mod:`memfs.room`).
"""

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memfs import calls, damon, residency, stragglers
from memfs.calls import extents
from memfs.pagemap import PAGE_BYTES, Pfns, pfns_of_runs
from memfs.ranges import Range
from memfs.residency import GONE, Counts, addresses, inside
from memfs.residency import Mapping as Area

STEP_BYTES = 4 << 20
ROUNDS = 3

_HUGE_BYTES = 2 << 20

# so many steps one after another whose pages came back elsewhere: the range is full
_FULL_AFTER = 4


@dataclass(frozen=True, slots=True)
class Gathered:
    """What gathering did, in pages, and what it cost."""

    before: Counts
    after: Counts
    moved: int
    """More than the difference if pages moved that no process has mapped."""
    left: Mapping[str, int]
    """Why pages still lie outside, by reason."""
    steps: int
    longest_step_ns: int
    """So long a page was away at the most."""
    duration_ns: int
    refaults: int
    """How often the processes themselves wanted a page while it was away (major faults)."""


def gather(
    pids: Iterable[int],
    spans: Sequence[Range],
    *,
    step_bytes: int = STEP_BYTES,
    limit_bytes: int | None = None,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] = lambda done_bytes, total_bytes: None,
    swapless: Iterable[int] = (),
    root: Path = Path("/"),
) -> Gathered:
    """Move the pages of running processes that lie outside of ``spans`` into them.

    Pages that lie there already are not touched; processes that end meanwhile are left out.

    :param step_bytes: never more than this is paged out at a time
    :param limit_bytes: stop when so much was moved
    :param progress: called after each step
    :param swapless: processes whose control group may not swap: they are left alone
    :raises PagesHidden: without CAP_SYS_ADMIN
    :raises PermissionError: without CAP_SYS_NICE and CAP_SYS_PTRACE
    """
    begun = time.monotonic_ns()
    tasks, exempt, proc = sorted(set(pids)), set(swapless), root / "proc"
    before = residency.survey(tasks, spans, proc)
    total_bytes = (before.total.outside + before.total.swapped + before.unmapped) * PAGE_BYTES
    faults = _major_faults(tasks, proc)
    mover = _Mover(
        inside(spans), step_bytes // PAGE_BYTES, limit_bytes, lambda done: progress(done, total_bytes)
    )
    for _ in range(rounds):
        moved = mover.moved
        for pid in tasks:
            if pid not in exempt:
                mover.process(pid, proc)
        if before.unmapped:
            mover.objects([pid for pid in tasks if pid not in exempt], proc)
        # the last percent is what cannot be moved, and what the processes allocate meanwhile
        if mover.stopped or (mover.moved - moved) * PAGE_BYTES < total_bytes / 100:
            break
        # a step that ends inside a huge page splits it: mm/madvise.c, madvise_cold_or_pageout_pte_range()
        mover.step_pages = min(mover.step_pages, _HUGE_BYTES // PAGE_BYTES // 2)
    with damon.claimed(root) as ours:
        if ours:
            mover.frames([pid for pid in tasks if pid not in exempt], step_bytes // PAGE_BYTES, root)
    for pid in tasks:
        mover.collapse(pid, proc)
    refaults = sum(max(0, now - faults.get(pid, now)) for pid, now in _major_faults(tasks, proc).items())
    after = residency.survey(tasks, spans, proc)
    return Gathered(
        before.total,
        after.total,
        mover.moved,
        stragglers.reasons(tasks, spans, mover.stopped, exempt, proc),
        mover.steps,
        mover.longest_ns,
        time.monotonic_ns() - begun,
        refaults,
    )


@dataclass(slots=True)
class _Mover:
    """Moves pages step by step and keeps count."""

    here: Callable[[Pfns], NDArray[np.bool_]]
    step_pages: int
    limit_bytes: int | None
    progress: Callable[[int], None]
    moved: int = 0
    steps: int = 0
    longest_ns: int = 0
    stopped: str | None = None
    _missed: int = field(default=0)

    def process(self, pid: int, proc: Path) -> None:
        """Move the pages of a process."""
        with ExitStack() as stack:
            try:
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                pagemap = os.open(proc / str(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, pagemap)
                for shared in (False, True):
                    for wanted in self._wanted(pid, shared, proc):
                        self._step(pid, pidfd, pagemap, wanted, shared)
            except GONE:
                return

    def frames(self, pids: Sequence[int], step_pages: int, root: Path) -> None:
        """Move what is left by its frames, and so also what several processes map."""
        if self.stopped or not pids:
            return
        left = [_Left.of(pid, self._inside, root / "proc") for pid in pids]
        frames = np.unique(np.concatenate([each.pfns for each in left]))
        merged = [each.pfns for each in left if stragglers.is_merged(each.pid, root / "proc")]
        may_be_merged = np.isin(frames, np.concatenate([*merged, frames[:0]]))
        frames = frames[stragglers.can_swap(frames, may_be_merged, root / "proc")]
        for at in range(0, len(frames), step_pages):
            some = frames[at : at + step_pages]
            try:
                begun = damon.page_out(extents(some * np.uint64(PAGE_BYTES)), root)
            except OSError as e:
                if e.errno != errno.EBUSY:  # a part of the kernel uses it: they stay where they are
                    raise
                return
            away, landed = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
            for each in left:
                gone, now = each.fetch(some, root / "proc")
                away, landed = np.union1d(away, gone), np.union1d(landed, now)
            took = time.monotonic_ns() - begun
            self._count(len(away), int(np.count_nonzero(self._inside(landed))), took)
            if self.stopped:
                return

    def collapse(self, pid: int, proc: Path) -> None:
        """Move shared memory that several processes map: the kernel copies it into huge pages, for all of them.

        Only what is complete: holes would be filled.
        """
        with ExitStack() as stack:
            try:
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                pagemap = os.open(proc / str(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, pagemap)
                for places in residency.places(pid, proc):
                    if places.mapping.shared:
                        for start in self._huge(places):
                            if self.stopped:
                                return
                            self._collapse(pidfd, pagemap, start)
            except GONE:
                return

    def _huge(self, places: residency.Places) -> list[int]:
        """Return the addresses of huge pages that are all there, and not all inside."""
        huge = addresses(places.extents) // np.uint64(_HUGE_BYTES)
        numbers, counts = np.unique(huge, return_counts=True)
        whole = numbers[counts == _HUGE_BYTES // PAGE_BYTES]
        found = np.intersect1d(whole, huge[~self._inside(places.pfns)])
        return [number * _HUGE_BYTES for number in found.tolist()]

    def _collapse(self, pidfd: int, pagemap: int, start: int) -> None:
        run = np.array([[start, _HUGE_BYTES]], np.uint64)
        before = int(np.count_nonzero(self._inside(_pfns(pagemap, run))))
        begun = time.monotonic_ns()
        refused = calls.process_madvise(pidfd, run, calls.MADV_COLLAPSE)
        took = time.monotonic_ns() - begun
        landed = int(np.count_nonzero(self._inside(_pfns(pagemap, run)))) - before
        self._count(_HUGE_BYTES // PAGE_BYTES if not refused else 0, landed, took)

    def objects(self, pids: Sequence[int], proc: Path) -> None:
        """Move pages of shared memory that lie in no process's page tables: through a mapping of our own."""
        seen = set()
        for pid in pids:
            try:
                memory = residency.shared_memory(pid, proc)
                areas = residency.mappings((proc / str(pid) / "maps").read_text())
            except GONE:
                continue
            for area in areas:
                if area.shared and area.device in memory and (area.device, area.inode) not in seen:
                    seen.add((area.device, area.inode))
                    self._object(pid, area, proc)

    def _object(self, pid: int, area: Area, proc: Path) -> None:
        with ExitStack() as stack:
            try:
                name = f"{area.start:x}-{area.end:x}"
                fd = os.open(proc / str(pid) / "map_files" / name, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                pidfd = os.pidfd_open(os.getpid())
                stack.callback(os.close, pidfd)
                pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, pagemap)
            except OSError:
                return  # unmapped just now, or the process has ended
            for start, length in _data(fd, self.step_pages * PAGE_BYTES):
                with mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start) as window:
                    view = np.frombuffer(window, np.uint8)
                    base = int(view.ctypes.data)
                    del view
                    run = addresses(np.array([[base, length]], np.uint64))
                    calls.touch(os.getpid(), run)
                    pfns = pfns_of_runs(pagemap, [(base, len(run))])
                    outside = run[~self._inside(pfns)]
                    if len(outside):
                        self._step(os.getpid(), pidfd, pagemap, outside, True)
                if self.stopped:
                    return

    def _inside(self, pfns: Pfns) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = self.here(pfns) & (pfns != 0)
        return inside

    def _wanted(self, pid: int, shared: bool, proc: Path) -> Iterator[NDArray[np.uint64]]:
        """Yield the pages of a process that lie outside, a step at a time: programs have hundreds of mappings."""
        some = np.zeros(0, np.uint64)
        for places in residency.places(pid, proc):
            if places.mapping.shared == shared:
                some = np.concatenate([some, addresses(places.extents)[~self._inside(places.pfns)]])
                while len(some) >= self.step_pages and not self.stopped:
                    yield some[: self.step_pages]
                    some = some[self.step_pages :]
            if self.stopped:
                return
        if len(some):
            yield some

    def _step(self, pid: int, pidfd: int, pagemap: int, pages: NDArray[np.uint64], shared: bool) -> None:
        begun = time.monotonic_ns()
        runs = extents(pages)
        calls.process_madvise(pidfd, runs, calls.MADV_PAGEOUT)
        away = _away(pagemap, pages, runs, shared)
        calls.touch(pid, away)
        took = time.monotonic_ns() - begun
        landed = int(np.count_nonzero(self._inside(_pfns(pagemap, runs))))
        self._count(len(away), landed, took)

    def _count(self, away: int, landed: int, took_ns: int) -> None:
        self.steps += 1
        self.moved += landed
        self.longest_ns = max(self.longest_ns, took_ns)
        # a few pages say nothing: another processor may have had frames at hand
        if away >= min(64, self.step_pages):
            self._missed = self._missed + 1 if landed < away // 16 else 0
        if self._missed >= _FULL_AFTER:
            self.stopped = stragglers.NO_ROOM
        elif self.limit_bytes is not None and self.moved * PAGE_BYTES >= self.limit_bytes:
            self.stopped = stragglers.LIMIT
        self.progress(self.moved * PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class _Left:
    """Pages of a process that still lie outside."""

    pid: int
    addresses: NDArray[np.uint64]
    pfns: Pfns

    @classmethod
    def of(cls, pid: int, here: Callable[[Pfns], NDArray[np.bool_]], proc: Path) -> "_Left":
        """Return them; none if the process has ended."""
        pages, pfns = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        try:
            for places in residency.places(pid, proc):
                outside = ~here(places.pfns) & (places.pfns != 0)
                pages.append(addresses(places.extents)[outside])
                pfns.append(places.pfns[outside])
        except GONE:
            pages, pfns = pages[:1], pfns[:1]
        return cls(pid, np.concatenate(pages), np.concatenate(pfns))

    def fetch(self, frames: Pfns, proc: Path) -> tuple[Pfns, Pfns]:
        """Bring back those that were paged out of some frames; return which frames that were, and where they are now.

        ``frames`` ascend.
        """
        mine = np.isin(self.pfns, frames)
        pages, before = self.addresses[mine], self.pfns[mine]
        if not len(pages):
            return before, before
        runs = extents(pages)
        try:
            pagemap = os.open(proc / str(self.pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
            try:
                away = _pfns(pagemap, runs) == 0
                calls.touch(self.pid, pages[away])
                now = _pfns(pagemap, runs)[away]
            finally:
                os.close(pagemap)
        except GONE:
            return before[:0], before[:0]
        return before[away], now


def _away(pagemap: int, pages: NDArray[np.uint64], runs: calls.Extents, shared: bool) -> NDArray[np.uint64]:
    """Return which pages are paged out."""
    if shared:
        # the page tables do not tell a page of shared memory that is swapped from one that is not mapped
        unmapped: NDArray[np.uint64] = pages[_pfns(pagemap, runs) == 0]
        return unmapped
    first, last = int(pages[0]), int(pages[-1]) + PAGE_BYTES
    # not those that the process has given back meanwhile: to read them would make new ones
    swapped = calls.pagemap_scan(pagemap, first, last, any_of=calls.PAGE_IS_SWAPPED)
    if not len(swapped):
        return pages[:0]
    row = np.searchsorted(swapped[:, 0], pages, side="right") - 1
    found: NDArray[np.uint64] = pages[(row >= 0) & (pages < swapped[row, 1])]
    return found


def _pfns(pagemap: int, runs: calls.Extents) -> Pfns:
    return pfns_of_runs(pagemap, ((start, length // PAGE_BYTES) for start, length in runs.tolist()))


def _data(fd: int, most_bytes: int) -> Iterable[tuple[int, int]]:
    """Yield offset and length of what a file of shared memory has, in pieces; to read a hole would fill it."""
    at, end = 0, os.fstat(fd).st_size
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            hole = os.lseek(fd, at, os.SEEK_HOLE)
        except OSError:
            return  # nothing but a hole is left
        at, hole = at // PAGE_BYTES * PAGE_BYTES, min(hole, end)
        while at < hole:
            length = min(most_bytes, hole - at)
            yield at, length
            at += length
        at = -(-at // PAGE_BYTES) * PAGE_BYTES


def _major_faults(pids: Iterable[int], proc: Path) -> dict[int, int]:
    found = {}
    for pid in pids:
        try:
            text = (proc / str(pid) / "stat").read_text()
        except OSError:
            continue
        # proc_pid_stat(5): majflt is field 12, state, the first behind the command's name, is field 3
        found[pid] = int(text.rpartition(")")[2].split()[9])
    return found
