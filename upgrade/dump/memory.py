# SPDX-License-Identifier: MIT
"""Where the pages of a dump are: in tasks, and in objects of shared memory.

Both tell the frames of their pages and let them be read. A page of shared memory need not be mapped by anybody, so an
object is mapped here, and the frames are looked up in our own page table.
"""

import ctypes
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from memfs import pagemap
from memfs.pagemap import Pfns
from upgrade import linux
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.pagemaps import PAGE_BYTES, Pagemap

Runs = Sequence[tuple[int, int]]
"""Address (or offset) in bytes and number of pages of each run."""


class Memory(Protocol):
    """Something with pages."""

    def frames(self, runs: Runs) -> Pfns:
        """Return the frames of pages, one behind the other; 0 where there is none."""
        ...

    def read(self, address: int, into: memoryview) -> None:
        """Read the contents from an address (or offset) on."""
        ...


class TaskMemory:
    """The memory of a stopped task."""

    def __init__(self, host: Host, pid: int) -> None:
        self.pid = pid
        self.table = os.open(host.path(f"/proc/{pid}/pagemap"), os.O_RDONLY | os.O_CLOEXEC)
        self.contents = os.open(host.path(f"/proc/{pid}/mem"), os.O_RDONLY | os.O_CLOEXEC)

    def frames(self, runs: Runs) -> Pfns:
        """Return the frames of pages, one behind the other; 0 where there is none."""
        return pagemap.pfns_of_runs(self.table, runs)

    def read(self, address: int, into: memoryview) -> None:
        """Read the contents from an address on."""
        while into:
            done = os.preadv(self.contents, [into], address)
            if done <= 0:
                raise UpgradeError(f"its memory at {address:#x} cannot be read", subject=f"PID {self.pid}")
            into, address = into[done:], address + done

    def close(self) -> None:
        """Let go of the task."""
        os.close(self.table)
        os.close(self.contents)


class SharedMemory:
    """An object of shared memory, mapped at ``address`` for reading."""

    def __init__(self, view: memoryview, address: int, table: int) -> None:
        self.view = view
        self.address = address
        self.table = table

    def frames(self, runs: Runs) -> Pfns:
        """Return the frames of pages, one behind the other; 0 where there is none."""
        for offset, pages in runs:
            linux.populate_read(self.address + offset, pages * PAGE_BYTES)
        return pagemap.pfns_of_runs(self.table, [(self.address + offset, pages) for offset, pages in runs])

    def read(self, address: int, into: memoryview) -> None:
        """Read the contents from an offset on."""
        into[:] = self.view[address : address + len(into)]


@contextmanager
def opened(host: Host, root_pid: int, pids: Sequence[int], maps: Sequence[Pagemap]) -> Iterator[list[Memory]]:
    """Open what the pagemaps of a container are about.

    :raises UpgradeError: if a task or object is not there
    """
    with ExitStack() as stack:
        tasks = {} if all(m.shared for m in maps) else tasks_by_number(host, root_pid, pids)
        objects = Objects(host, root_pid, pids, stack)
        found: list[Memory] = []
        for each in maps:
            if each.shared:
                found.append(objects.open(each))
                continue
            if each.number not in tasks:
                raise UpgradeError("CRIU dumped it, but there is no such task", subject=f"PID {each.number}")
            task = TaskMemory(host, tasks[each.number])
            stack.callback(task.close)
            found.append(task)
        yield found


def tasks_by_number(host: Host, root_pid: int, pids: Iterable[int]) -> dict[int, int]:
    """Return the tasks by the number that CRIU knows them by: the one in the PID namespace of the tree's root."""
    level = len(_numbers(host, root_pid)) - 1
    return {_numbers(host, pid)[level]: pid for pid in pids}


def _numbers(host: Host, pid: int) -> list[int]:
    for line in host.read(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    raise UpgradeError("the kernel does not tell its numbers (NSpid)", subject=f"PID {pid}")


class Objects:
    """The objects of shared memory of a container; CRIU calls each by its inode number."""

    def __init__(self, host: Host, root_pid: int, pids: Sequence[int], stack: ExitStack) -> None:
        self.host = host
        self.root_pid = root_pid
        self.pids = pids
        self.stack = stack
        self.files: dict[int, Path] | None = None

    def open(self, wanted: Pagemap) -> Memory:
        """Map the object of a pagemap.

        :raises UpgradeError: if there is no such object
        """
        size = max((offset + pages * PAGE_BYTES for offset, pages in wanted.runs), default=PAGE_BYTES)
        if self.files is None:
            self.files = {**self._descriptors(), **self._mapped()}
        table = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self.stack.callback(os.close, table)
        file = self.files.get(wanted.number)
        if file is not None:
            return self._map(file, size, table)
        return self._attach(wanted.number, size, table)

    def _map(self, file: Path, size: int, table: int) -> Memory:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        # Not closed: views of it may live on. It goes with the last of them.
        return SharedMemory(memoryview(mapped), int(np.frombuffer(mapped, np.uint8).ctypes.data), table)

    def _attach(self, number: int, size: int, table: int) -> Memory:
        """Map a segment of System V that no task has attached; it is known in its IPC namespace only."""
        attached: list[int] = []

        def work() -> None:
            with open(self.host.path(f"/proc/{self.root_pid}/ns/ipc"), "rb") as space:
                linux.enter_ipc_namespace(space.fileno())
            attached.append(linux.attach_shared_memory(number))

        thread = threading.Thread(target=work, name="IPC namespace")  # the namespace is the thread's own
        thread.start()
        thread.join()
        if not attached:
            raise UpgradeError(f"its shared memory {number} is not found", subject=f"PID {self.root_pid}")
        self.stack.callback(linux.detach_shared_memory, attached[0])
        view = memoryview((ctypes.c_char * size).from_address(attached[0])).cast("B")
        return SharedMemory(view, attached[0], table)

    def _mapped(self) -> dict[int, Path]:
        found = {}
        for pid in self.pids:
            for line in self.host.read_or(f"/proc/{pid}/maps", "").splitlines():
                words = line.split(maxsplit=5)
                # objects have no name in any directory, so theirs are called deleted
                if len(words) == 6 and words[5].endswith("(deleted)"):
                    found[int(words[4])] = self.host.path(f"/proc/{pid}/map_files/{_as_linked(words[0])}")
        return found

    def _descriptors(self) -> dict[int, Path]:
        found = {}
        for pid in self.pids:
            for number in self.host.list(f"/proc/{pid}/fd"):
                file = self.host.path(f"/proc/{pid}/fd/{number}")
                try:
                    if os.readlink(file).startswith("/memfd:"):
                        found[os.stat(file).st_ino] = file
                except OSError:
                    continue
        return found


def _as_linked(span: str) -> str:
    """Return the name in ``map_files`` of a line in ``maps``: without leading zeroes."""
    start, _, end = span.partition("-")
    return f"{int(start, 16):x}-{int(end, 16):x}"
