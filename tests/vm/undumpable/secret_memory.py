# SPDX-License-Identifier: MIT
"""Runs in the guest: secret memory (memfd_secret(2))."""

import mmap
import os

from condition import hold, syscall

CHECK = "containers.files"
SYS_MEMFD_SECRET = 447


def make() -> object:
    fd = syscall(SYS_MEMFD_SECRET, 0)
    os.ftruncate(fd, mmap.PAGESIZE)
    area = mmap.mmap(fd, mmap.PAGESIZE)
    area[:6] = b"secret"
    return fd, area


hold(make)
