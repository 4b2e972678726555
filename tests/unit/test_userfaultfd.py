# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.userfaultfd`` on memory of this process, whose missing pages nobody touches."""

import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Iterator

import pytest

from upgrade import userfaultfd
from upgrade.userfaultfd import (
    MESSAGE_BYTES,
    PAGE_BYTES,
    UFFD_EVENT_PAGEFAULT,
    UFFD_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_REMOVE,
)

PAGES = 512
BIG_PAGES = 64 << 8


class Memory:
    """Registered memory and its descriptor."""

    def __init__(self, pages: int) -> None:
        self.map = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.anchor = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(self.anchor)
        self.fd = userfaultfd.create()
        userfaultfd.api(self.fd, UFFD_FEATURE_EVENT_REMOVE)
        userfaultfd.register(self.fd, self.address, pages * PAGE_BYTES)

    def at(self, page: int) -> int:
        return self.address + page * PAGE_BYTES


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(PAGES)
    yield made
    os.close(made.fd)


@pytest.fixture
def source() -> Iterator[int]:
    """Return the address of pages with something in each."""
    pages = mmap.mmap(-1, PAGES * PAGE_BYTES)
    pages[:] = b"".join(bytes([n % 251]) * PAGE_BYTES for n in range(PAGES))
    yield ctypes.addressof(ctypes.c_char.from_buffer(pages))
    pages.close()


def fails_with(number: int, *arguments: int, function: str = "copy") -> bool:
    with pytest.raises(OSError) as caught:
        getattr(userfaultfd, function)(*arguments)
    return caught.value.errno == number


def copied(memory: Memory, source: int, page: int) -> bool:
    """Copy a page; tells whether the kernel did so, or wants an event to be read first."""
    try:
        return userfaultfd.copy(memory.fd, memory.at(page), source, PAGE_BYTES) > 0
    except BlockingIOError:
        return False


def test_pages_are_copied_from_a_file(memory: Memory, source: int) -> None:
    assert userfaultfd.copy(memory.fd, memory.address, source, PAGES * PAGE_BYTES) == PAGES * PAGE_BYTES
    assert memory.map[:] == ctypes.string_at(source, PAGES * PAGE_BYTES)


def test_a_copy_ends_where_a_page_is(memory: Memory, source: int) -> None:
    assert userfaultfd.zero(memory.fd, memory.at(3), PAGE_BYTES) == PAGE_BYTES
    assert userfaultfd.copy(memory.fd, memory.at(0), source, 8 * PAGE_BYTES) == 3 * PAGE_BYTES
    assert fails_with(errno.EEXIST, memory.fd, memory.at(3), source, PAGE_BYTES)
    assert memory.map[3 * PAGE_BYTES] == 0


def test_what_is_not_registered_and_what_cannot_be_read(memory: Memory, source: int) -> None:
    assert fails_with(errno.ENOENT, memory.fd, memory.at(PAGES - 1), source, 2 * PAGE_BYTES)
    assert fails_with(errno.EFAULT, memory.fd, memory.at(0), 1 << 46, PAGE_BYTES)


def test_a_fault_is_read_where_it_is_wanted(memory: Memory) -> None:
    # ctypes gives the interpreter away while it copies; the page comes from below
    target = ctypes.create_string_buffer(1)
    libc = ctypes.CDLL(None)
    thread = threading.Thread(
        target=lambda: libc.memcpy(target, ctypes.c_void_p(memory.at(5) + 7), ctypes.c_size_t(1))
    )
    thread.start()
    into = bytearray(3 * MESSAGE_BYTES)
    while (
        message := userfaultfd.read(memory.fd, memoryview(into)[MESSAGE_BYTES : 2 * MESSAGE_BYTES])
    ) is None:
        time.sleep(0)
    assert (message.event, message.address) == (UFFD_EVENT_PAGEFAULT, memory.at(5))
    assert into[MESSAGE_BYTES] == UFFD_EVENT_PAGEFAULT
    assert into[2 * MESSAGE_BYTES :] == bytes(MESSAGE_BYTES)
    # whoever was told of it is gone: the fault is reported again
    userfaultfd.wake(memory.fd, memory.address, PAGES * PAGE_BYTES)
    while userfaultfd.read(memory.fd, memoryview(into)[:MESSAGE_BYTES]) is None:
        time.sleep(0)
    userfaultfd.zero(memory.fd, memory.at(5), PAGE_BYTES)
    thread.join()


def test_while_an_event_waits_nothing_can_be_copied(memory: Memory, source: int) -> None:
    """The ground that the server stands on: no copy between an event's begin and its reading."""
    libc = ctypes.CDLL(None)
    thread = threading.Thread(
        target=lambda: libc.madvise(
            ctypes.c_void_p(memory.at(2)), ctypes.c_size_t(2 * PAGE_BYTES), mmap.MADV_DONTNEED
        )
    )
    thread.start()
    page = 10
    while copied(memory, source, page):  # until the event has begun
        page += 1
        time.sleep(0.001)
    assert fails_with(errno.EAGAIN, memory.fd, memory.at(2), source, PAGE_BYTES)
    assert fails_with(errno.EAGAIN, memory.fd, memory.at(2), PAGE_BYTES, function="zero")
    message = userfaultfd.read(memory.fd, memoryview(bytearray(MESSAGE_BYTES)))
    assert message is not None
    assert (message.event, message.first, message.second) == (
        UFFD_EVENT_REMOVE,
        memory.at(2),
        memory.at(4),
    )
    thread.join()
    assert userfaultfd.copy(memory.fd, memory.at(2), source, PAGE_BYTES) == PAGE_BYTES


def test_the_interpreter_runs_on_during_a_copy() -> None:
    """What is counted in Python during one call into the kernel shows that the GIL was given away."""
    memory = Memory(BIG_PAGES)
    size = BIG_PAGES * PAGE_BYTES
    data = mmap.mmap(-1, size)
    origin = ctypes.addressof(ctypes.c_char.from_buffer(data))
    started, ended = threading.Event(), threading.Event()

    def copy() -> None:
        started.set()
        userfaultfd.copy(memory.fd, memory.address, origin, size)
        ended.set()

    thread = threading.Thread(target=copy)
    thread.start()
    started.wait()
    turns = 0
    while not ended.is_set():
        turns += 1
    thread.join()
    os.close(memory.fd)
    assert turns > 1000
