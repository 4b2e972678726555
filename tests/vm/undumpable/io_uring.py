# SPDX-License-Identifier: MIT
"""Runs in the guest: an io_uring, with its rings mapped (criu issue #2131)."""

import ctypes
import mmap

from condition import hold, syscall

CHECK = "containers.descriptors"
SYS_IO_URING_SETUP = 425


def make() -> object:
    ring = syscall(SYS_IO_URING_SETUP, 4, ctypes.create_string_buffer(120))
    return ring, mmap.mmap(ring, 4096)


hold(make)
