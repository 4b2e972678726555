# SPDX-License-Identifier: MIT
"""Runs in the guest: the ring of a performance counter, whose descriptor is closed."""

import ctypes
import mmap
import os
import struct

from condition import hold, syscall

CHECK = "containers.mappings"
SYS_PERF_EVENT_OPEN, PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY = 298, 1, 9
SYS_MMAP = 9


def make() -> object:
    attributes = struct.pack("=IIQ", PERF_TYPE_SOFTWARE, 112, PERF_COUNT_SW_DUMMY).ljust(112, b"\0")
    counter = syscall(SYS_PERF_EVENT_OPEN, ctypes.c_char_p(attributes), 0, -1, -1, 0)
    ring = syscall(
        SYS_MMAP, 0, 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, counter, 0
    )
    os.close(counter)
    return ring


hold(make)
