# SPDX-License-Identifier: MIT
"""userfaultfd(2): page faults of one process, answered by another.

Scope: thin wrappers for x86-64 that raise OSError; no policy. Numbers and structures are those of
include/uapi/linux/userfaultfd.h unless another header is named. Every call releases the GIL while the kernel works:
``fcntl.ioctl`` does so for buffers of up to 1024 bytes, ``os.readv`` and ctypes always.
"""

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from memfs import libc

PAGE_BYTES: Final = 4096

# arch/x86/entry/syscalls/syscall_64.tbl
SYS_USERFAULTFD: Final = 323

UFFD_API: Final = 0xAA

UFFD_FEATURE_EVENT_FORK: Final = 1 << 1
UFFD_FEATURE_EVENT_REMAP: Final = 1 << 2
UFFD_FEATURE_EVENT_REMOVE: Final = 1 << 3
UFFD_FEATURE_EVENT_UNMAP: Final = 1 << 6

UFFDIO_REGISTER_MODE_MISSING: Final = 1 << 0

# _IOWR(0xAA, 0x3F, struct uffdio_api) and so on
UFFDIO_API: Final = 0xC018AA3F
UFFDIO_REGISTER: Final = 0xC020AA00
UFFDIO_WAKE: Final = 0x8010AA02
UFFDIO_COPY: Final = 0xC028AA03
UFFDIO_ZEROPAGE: Final = 0xC020AA04
UFFDIO_POISON: Final = 0xC020AA08  # since Linux 6.6

UFFD_EVENT_PAGEFAULT: Final = 0x12
UFFD_EVENT_FORK: Final = 0x13
UFFD_EVENT_REMAP: Final = 0x14
UFFD_EVENT_REMOVE: Final = 0x15
UFFD_EVENT_UNMAP: Final = 0x16

MESSAGE_BYTES: Final = 32  # struct uffd_msg

_API = struct.Struct("<QQQ")
_REGISTER = struct.Struct("<QQQQ")
_RANGE = struct.Struct("<QQ")
_COPY = struct.Struct("<QQQQq")
_FILL = struct.Struct("<QQQq")
_MESSAGE = struct.Struct("<B7xQQQ")


@dataclass(frozen=True, slots=True)
class Message:
    """What a descriptor tells (``struct uffd_msg``); which fields mean something depends on the event."""

    event: int
    first: int
    second: int
    third: int

    @classmethod
    def parse(cls, data: bytes | memoryview) -> "Message":
        """Read the structure; an event of 0 is no message."""
        return cls(*_MESSAGE.unpack(data))

    @property
    def address(self) -> int:
        """Return the address of a page fault (its page, for user space that did not ask for more)."""
        return self.second & ~(PAGE_BYTES - 1)

    @property
    def descriptor(self) -> int:
        """Return the descriptor of the child of a fork, open in the process that read the message."""
        return self.first & 0xFFFFFFFF


def create(flags: int = os.O_CLOEXEC | os.O_NONBLOCK) -> int:
    """Return a new descriptor for this process's memory; :func:`api` must follow."""
    return libc.call("userfaultfd", SYS_USERFAULTFD, ctypes.c_long(flags))


def api(fd: int, features: int) -> int:
    """Agree with the kernel on features; returns those that it has."""
    buffer = bytearray(_API.pack(UFFD_API, features, 0))
    fcntl.ioctl(fd, UFFDIO_API, buffer)
    return int(_API.unpack(buffer)[1])


def register(fd: int, address: int, length: int) -> None:
    """Have faults on missing pages of a range reported."""
    fcntl.ioctl(
        fd, UFFDIO_REGISTER, bytearray(_REGISTER.pack(address, length, UFFDIO_REGISTER_MODE_MISSING, 0))
    )


def read(fd: int, into: memoryview) -> Message | None:
    """Take one message; ``None`` where none waits. The kernel writes it straight to ``into`` (32 bytes).

    A task that waits for an event to be read runs on as soon as this call has taken it.
    """
    try:
        done = os.readv(fd, [into])
    except BlockingIOError:
        return None
    if done != MESSAGE_BYTES:
        raise OSError(errno.EIO, f"userfaultfd: read {done} bytes")
    return Message.parse(into)


def copy(fd: int, address: int, source: int, length: int) -> int:
    """Fill missing pages with copies of ours and wake who waits for them; returns how many bytes were copied.

    :param source: an address of this process
    :raises OSError: if not even the first page was: EEXIST (it is there already), EAGAIN (an event waits to be read),
        ENOENT (no page of a registered mapping, or the range leaves its mapping), ESRCH (process gone), EFAULT (the
        source cannot be read), ENOMEM
    """
    buffer = bytearray(_COPY.pack(address, source, length, 0, 0))
    return _fill(fd, UFFDIO_COPY, buffer, length)


def zero(fd: int, address: int, length: int) -> int:
    """Fill missing pages with zeroes; otherwise the same as :func:`copy`."""
    return _fill(fd, UFFDIO_ZEROPAGE, bytearray(_FILL.pack(address, length, 0, 0)), length)


def poison(fd: int, address: int, length: int) -> int:
    """Make missing pages raise SIGBUS in who touches them; otherwise the same as :func:`copy`."""
    return _fill(fd, UFFDIO_POISON, bytearray(_FILL.pack(address, length, 0, 0)), length)


def _fill(fd: int, request: int, buffer: bytearray, length: int) -> int:
    try:
        fcntl.ioctl(fd, request, buffer)
    except OSError as e:
        # Ended early: the number of bytes is in the last field. If it was the first page that failed, that field is
        # the error, or was not written at all.
        done = int.from_bytes(buffer[-8:], "little", signed=True)
        if e.errno == errno.EAGAIN and done > 0:
            return done
        raise
    return length


def wake(fd: int, address: int, length: int) -> None:
    """Have who waits for pages of a range look again; where one is still missing the fault is reported again."""
    fcntl.ioctl(fd, UFFDIO_WAKE, bytearray(_RANGE.pack(address, length)))
