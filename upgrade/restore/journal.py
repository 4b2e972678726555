# SPDX-License-Identifier: MIT
"""What one userfaultfd has told, in files that outlive the server.

Reading a message is what lets the task run on: a server that dies between reading an event and writing it down
would bring old contents back. So the kernel writes the message itself into the file: the file is mapped, and the
message is read straight into the mapping. There is no moment at which an event is neither with the kernel nor in the
file.

``NAME.events`` holds the messages that changed the layout, one behind the other; the last may be a page fault, which
the next message overwrites. ``NAME.done`` has a byte for each window of pages, 1 once all of them are where they
belong: only so that a new server need not ask the kernel for every page.
"""

import mmap
import os
from pathlib import Path

from upgrade import userfaultfd
from upgrade.userfaultfd import MESSAGE_BYTES, UFFD_EVENT_PAGEFAULT, Message

# Sparse: only what is written takes memory.
CAPACITY = 1 << 19
_STEP_BYTES = mmap.PAGESIZE


class Journal:
    """The messages of one descriptor, and which windows of its pages are done."""

    def __init__(self, directory: Path, name: str, windows: int) -> None:
        self.existed = events_file(directory, name).exists()
        self.done = _map(directory / f"{name}.done", max(windows, 1))
        fd = os.open(events_file(directory, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(fd).st_size == 0:
            os.ftruncate(fd, CAPACITY * MESSAGE_BYTES)
        self._fd = fd
        self._view = memoryview(mmap.mmap(fd, CAPACITY * MESSAGE_BYTES))
        self.used = len(_kept(self._view))
        self._allocated = 0
        self._allocate()

    def read(self, fd: int) -> Message | None:
        """Take the next message from a descriptor; ``None`` where none waits."""
        return userfaultfd.read(fd, self._slot(self.used))

    def keep(self) -> None:
        """Keep the message that was read last; without this the next one takes its place."""
        if self.used < CAPACITY - 1:  # a task with so many events: right while we live
            self.used += 1
            self._allocate()

    def messages(self) -> list[Message]:
        """Return the kept messages."""
        return _kept(self._view)

    def close(self) -> None:
        """Close the files; they stay, as children of forks refer to them."""
        os.close(self._fd)
        self.done.close()

    def _slot(self, number: int) -> memoryview:
        return self._view[number * MESSAGE_BYTES : (number + 1) * MESSAGE_BYTES]

    def _allocate(self) -> None:
        """See to it that the next message has a place: with /run full the kernel could not write it anywhere."""
        end = (self.used + 1) * MESSAGE_BYTES
        if end > self._allocated:
            begin = self._allocated
            self._allocated = -(-end // _STEP_BYTES) * _STEP_BYTES
            os.posix_fallocate(self._fd, begin, self._allocated - begin)
            # Mapped now: who is being killed may be denied a page fault, and the kernel's message would be nowhere.
            at = max(begin, self.used * MESSAGE_BYTES)
            self._view[at] = self._view[at]


def events_file(directory: Path, name: str) -> Path:
    """Return where the messages of a descriptor are."""
    return directory / f"{name}.events"


def kept_messages(path: Path) -> list[Message]:
    """Return the messages that a server which is gone has kept; none without a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        if not os.fstat(fd).st_size:
            return []
        with mmap.mmap(fd, CAPACITY * MESSAGE_BYTES, prot=mmap.PROT_READ) as data:
            with memoryview(data) as view:
                return _kept(view)
    finally:
        os.close(fd)


def _kept(view: memoryview) -> list[Message]:
    found = []
    for at in range(0, CAPACITY * MESSAGE_BYTES, MESSAGE_BYTES):
        event = view[at]
        if event in (0, UFFD_EVENT_PAGEFAULT):
            break
        found.append(Message.parse(view[at : at + MESSAGE_BYTES]))
    return found


def _map(path: Path, size: int) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)
