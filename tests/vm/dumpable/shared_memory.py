# SPDX-License-Identifier: MIT
"""Runs in the guest: shared memory, anonymous and of a memfd."""

import mmap
import os

from condition import hold


def make() -> object:
    fd = os.memfd_create("shared")
    os.ftruncate(fd, mmap.PAGESIZE)
    areas = mmap.mmap(fd, mmap.PAGESIZE), mmap.mmap(-1, mmap.PAGESIZE)
    areas[0][:4] = areas[1][:4] = b"data"
    return fd, areas


hold(make)
