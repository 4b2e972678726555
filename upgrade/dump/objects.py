# SPDX-License-Identifier: MIT
"""Objects of shared memory: memfd, shared anonymous memory, segments of System V.

CRIU calls each by its inode number, which is that of one file system only: the kernel's own mount of tmpfs, or one of
hugetlbfs for each size of page. A deleted file of any other file system may have the same number. A segment of System V
has its identifier for a number, so it may have that of another object; CRIU takes the two for one then.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from upgrade import linux
from upgrade.errors import UpgradeError
from upgrade.host import Host

_PAGE_BYTES = 4096
_HUGE_SHIFTS = (21, 30)  # the sizes of huge pages of x86-64


@dataclass(frozen=True, slots=True)
class _Object:
    file: Path
    device: str
    system_v: bool


class Objects:
    """The objects of shared memory of a container."""

    def __init__(self, host: Host, root_pid: int, pids: Sequence[int]) -> None:
        self.host = host
        self.root_pid = root_pid
        self.pids = pids
        self._in_memory: dict[int, list[_Object]] | None = None
        self._in_tables: dict[int, Path] | None = None
        self._devices: frozenset[int] = frozenset()

    @contextmanager
    def mapped(self, number: int, size_bytes: int) -> Iterator[int]:
        """Map an object for reading; the value is its address.

        :raises UpgradeError: if there is no such object, or more than one
        """
        file = self._find(number)
        if file is not None:
            address, size = self._map(number, file, size_bytes)
            try:
                yield address
            finally:
                linux.unmap(address, size)
            return
        address = self._attach(number)
        try:
            yield address
        finally:
            linux.detach_shared_memory(address)

    def _find(self, number: int) -> Path | None:
        if self._in_memory is None:
            self._devices = _devices()
            self._in_memory = self._mappings()
        objects = self._in_memory.get(number, [])
        if len(objects) > 1:
            raise UpgradeError(
                f"it has {len(objects)} objects of shared memory with the number {number}; CRIU takes them for one",
                subject=f"PID {self.root_pid}",
                hint="restart the container: then they get other numbers",
            )
        if objects:
            return objects[0].file
        if self._in_tables is None:
            self._in_tables = self._descriptors()
        return self._in_tables.get(number)

    def _map(self, number: int, file: Path, size_bytes: int) -> tuple[int, int]:
        """Return address and size of the mapping."""
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                state = os.fstat(fd)
                if state.st_ino != number or state.st_dev not in self._devices:
                    raise UpgradeError(f"is no longer shared memory {number}", subject=str(file))
                # as large as its pages want it, or it could not be unmapped; it may end within one
                block = max(_PAGE_BYTES, state.st_blksize)
                size = -(-size_bytes // block) * block
                return linux.map_shared(fd, size), size
            finally:
                os.close(fd)
        except OSError as e:
            raise UpgradeError(f"shared memory {number} cannot be mapped: {e}", subject=str(file)) from e

    def _attach(self, number: int) -> int:
        """Map a segment of System V that no task has attached; it is known in its IPC namespace only."""
        attached: list[int] = []
        failed: list[OSError] = []

        def work() -> None:
            try:
                with open(self.host.path(f"/proc/{self.root_pid}/ns/ipc"), "rb") as space:
                    linux.enter_ipc_namespace(space.fileno())
                attached.append(linux.attach_shared_memory(number))
            except OSError as e:
                failed.append(e)

        thread = threading.Thread(target=work, name="IPC namespace")  # the namespace is the thread's own
        thread.start()
        thread.join()
        if not attached:
            why = f": {failed[0]}" if failed else ""
            raise UpgradeError(
                f"its shared memory {number} is not found{why}", subject=f"PID {self.root_pid}"
            )
        return attached[0]

    def _mappings(self) -> dict[int, list[_Object]]:
        """Return the objects that tasks have mapped by their number."""
        devices = {f"{os.major(d):02x}:{os.minor(d):02x}" for d in self._devices}
        found: dict[int, dict[tuple[str, bool], _Object]] = {}
        for pid in self.pids:
            for line in self.host.read_or(f"/proc/{pid}/maps", "").splitlines():
                # objects have no name in any directory, so theirs are called deleted
                if not line.endswith("(deleted)"):
                    continue
                span, _, _, device, number, name = line.split(maxsplit=5)
                if device in devices:
                    file = self.host.path(f"/proc/{pid}/map_files/{_as_linked(span)}")
                    seen = _Object(file, device, name.startswith("/SYSV"))
                    found.setdefault(int(number), {}).setdefault((device, seen.system_v), seen)
        return {number: list(objects.values()) for number, objects in found.items()}

    def _descriptors(self) -> dict[int, Path]:
        """Return the objects that tasks have open by their number."""
        found = {}
        for pid in self.pids:
            for name in self.host.list(f"/proc/{pid}/fd"):
                file = self.host.path(f"/proc/{pid}/fd/{name}")
                with suppress(OSError):
                    # by its name first: a file system may not answer
                    if os.readlink(file).startswith("/memfd:"):
                        state = os.stat(file)
                        if state.st_dev in self._devices:
                            found[state.st_ino] = file
        return found


def _devices() -> frozenset[int]:
    """Return the devices of the file systems that objects of shared memory belong to."""
    found = set()
    huge = (linux.MFD_HUGETLB | shift << linux.MFD_HUGE_SHIFT for shift in _HUGE_SHIFTS)
    for flags in (0, *huge):
        with suppress(OSError):  # the kernel has no pages of this size
            fd = os.memfd_create("", flags | os.MFD_CLOEXEC)
            found.add(os.fstat(fd).st_dev)
            os.close(fd)
    return frozenset(found)


def _as_linked(span: str) -> str:
    """Return the name in ``map_files`` of a line in ``maps``: without leading zeroes."""
    start, _, end = span.partition("-")
    return f"{int(start, 16):x}-{int(end, 16):x}"
