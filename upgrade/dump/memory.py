# SPDX-License-Identifier: MIT
"""Where the pages of a dump are: in tasks, and in objects of shared memory.

Both tell the frames of their pages and let them be read. A page of shared memory need not be mapped by anybody, so an
object is mapped here, and the frames are looked up in our own page table.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, TypeAlias

import numpy as np

from memfs import pagemap
from memfs.pagemap import PAGE_BYTES, PagemapEnds, Pages, Pfns, Runs
from upgrade import linux
from upgrade.dump.objects import Objects
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.pagemaps import Pagemap

Read: TypeAlias = Callable[[int, memoryview], None]
"""Reads the contents from an address (or offset) on."""

# mm/memory.c, fault_around_pages: who has one page mapped gets its neighbours that are in memory as well
_AROUND_BYTES = 64 << 10


class Memory(Protocol):
    """Something with pages. Addresses are offsets in an object of shared memory."""

    def frames(self, runs: Runs) -> Pfns:
        """Return the frames of pages, one behind the other; 0 where there is none."""
        ...

    def reading(self) -> AbstractContextManager[Read]:
        """Return what reads its contents."""
        ...


class TaskMemory:
    """The memory of a stopped task. Nothing of it stays open: there may be thousands of tasks."""

    def __init__(self, host: Host, pid: int | str) -> None:
        self.pid = pid
        self.directory = host.path(f"/proc/{pid}")

    def frames(self, runs: Runs) -> Pfns:
        """Return the frames of pages, one behind the other; 0 where there is none."""
        try:
            return pagemap.pfns_of_runs(self.directory / "pagemap", runs)
        except (PagemapEnds, OSError, ValueError) as e:
            raise UpgradeError(
                f"it is gone, or has not the memory that was dumped: {e}", subject=f"PID {self.pid}"
            ) from e

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """Return what reads its contents."""
        contents = os.open(self.directory / "mem", os.O_RDONLY | os.O_CLOEXEC)

        def read(address: int, into: memoryview) -> None:
            while into:
                try:
                    done = os.preadv(contents, [into], address)
                except OSError as e:
                    raise self._unreadable(address, e.strerror) from e
                if done <= 0:
                    raise self._unreadable(address, "it has none there")
                into, address = into[done:], address + done

        try:
            yield read
        finally:
            os.close(contents)

    def _unreadable(self, address: int, why: str | None) -> UpgradeError:
        return UpgradeError(f"its memory at {address:#x} cannot be read: {why}", subject=f"PID {self.pid}")


class SharedMemory:
    """An object of shared memory, mapped here at ``address`` for reading."""

    def __init__(self, address: int) -> None:
        self.address = address
        # through the kernel: if somebody cuts the object off this is an error and no signal
        self.ours = TaskMemory(Host(), "self")

    def frames(self, runs: Runs) -> Pfns:
        """Return the frames of pages, one behind the other; 0 where there is none."""
        here = Runs(runs.starts + self.address, runs.counts)
        found = self.ours.frames(here)
        for around in (True, False):
            missing = np.flatnonzero(found == 0)
            if not len(missing):
                break
            _populate(here.addresses(missing), around=around)
            found = self.ours.frames(here)
        return found

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """Return what reads its contents."""
        with self.ours.reading() as read:
            yield lambda offset, into: read(self.address + offset, into)


def _populate(pages: Pages, *, around: bool) -> None:
    """Have pages mapped, given by ascending addresses of ours.

    :param around: leave out pages that may be mapped together with one of their neighbours
    """
    first = np.flatnonzero(np.diff(pages, prepend=-1) != PAGE_BYTES)
    starts, sizes = pages[first], np.diff(first, append=len(pages)) * PAGE_BYTES
    if around:
        kept = np.diff(starts // _AROUND_BYTES, prepend=-1) != 0
        kept |= sizes > _AROUND_BYTES
        starts, sizes = starts[kept], sizes[kept]
    populate = linux.reader_ahead()
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        try:
            populate(start, size)
        except OSError as e:
            raise UpgradeError(f"shared memory cannot be read: {e}") from e


@contextmanager
def opened(host: Host, root_pid: int, pids: Sequence[int], maps: Sequence[Pagemap]) -> Iterator[list[Memory]]:
    """Open what the pagemaps of a container are about.

    :raises UpgradeError: if a task or object is not there
    """
    with ExitStack() as stack:
        tasks = {} if all(m.shared for m in maps) else tasks_by_number(host, root_pid, pids)
        objects = Objects(host, root_pid, pids)
        found: list[Memory] = []
        for each in maps:
            if each.shared:
                size = max(
                    (s + n * PAGE_BYTES for s, n in zip(each.starts, each.counts, strict=True)), default=1
                )
                found.append(SharedMemory(stack.enter_context(objects.mapped(each.number, size))))
            elif each.number in tasks:
                found.append(TaskMemory(host, tasks[each.number]))
            else:
                raise UpgradeError("CRIU dumped it, but there is no such task", subject=f"PID {each.number}")
        yield found


def tasks_by_number(host: Host, root_pid: int, pids: Iterable[int]) -> dict[int, int]:
    """Return the tasks by the number that CRIU knows them by: the one in the PID namespace of the tree's root."""
    level = len(_numbers(host, root_pid)) - 1
    numbers = ((_numbers(host, pid), pid) for pid in pids)
    # who has no number there is none of the tree, whatever it does in the cgroup
    return {n[level]: pid for n, pid in numbers if len(n) > level}


def _numbers(host: Host, pid: int) -> list[int]:
    for line in host.read_or(f"/proc/{pid}/status", "").splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    raise UpgradeError("it is gone, or the kernel does not tell its numbers (NSpid)", subject=f"PID {pid}")
