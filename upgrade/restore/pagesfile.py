# SPDX-License-Identifier: MIT
"""A ``pages-N.img``, whose pages are copied to where they belong.

It is read and not mapped, although that takes a second copy: tasks that share a frame since a fork have it in the file
of each, and the kernel (6.12, ``dax_associate_entry`` in fs/dax.c) warns of a frame that is mapped through two files:
that would taint it, or end it with ``panic_on_warn``.
"""

import ctypes
import errno
import mmap
import os
import threading
from pathlib import Path

from upgrade import userfaultfd
from upgrade.userfaultfd import PAGE_BYTES

MOST_PAGES = 128
"""What is copied at once: so little that it is still in the processor's cache when it is copied again."""


class PagesFile:
    """The file, and a buffer for each thread that copies from it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._fd).st_size
        self._own = _Buffer()

    def copy(self, fd: int, address: int, page: int, count: int) -> int:
        """Copy up to ``count`` pages from ``page`` on to an address of a userfaultfd; returns how many it were.

        :raises OSError: if not even the first one was: as :func:`userfaultfd.copy`, EFAULT if it cannot be read
        """
        length = min(count, MOST_PAGES) * PAGE_BYTES
        try:
            done = os.preadv(self._fd, [self._own.view[:length]], page * PAGE_BYTES)
        except OSError as e:
            raise OSError(errno.EFAULT, f"cannot be read: {e.strerror}") from e
        length = done - done % PAGE_BYTES
        if not length:
            raise OSError(errno.EFAULT, "ends early")
        return userfaultfd.copy(fd, address, self._own.address, length) // PAGE_BYTES


class _Buffer(threading.local):
    def __init__(self) -> None:
        memory = mmap.mmap(-1, MOST_PAGES * PAGE_BYTES)
        self.view = memoryview(memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
