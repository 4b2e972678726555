# SPDX-License-Identifier: MIT
"""Runs in the guest: a performance counter."""

import ctypes
import struct

from condition import hold, syscall

CHECK = "containers.descriptors"
SYS_PERF_EVENT_OPEN, PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK = 298, 1, 1


def make() -> object:
    attributes = struct.pack("=IIQ", PERF_TYPE_SOFTWARE, 112, PERF_COUNT_SW_TASK_CLOCK).ljust(112, b"\0")
    return syscall(SYS_PERF_EVENT_OPEN, ctypes.c_char_p(attributes), 0, -1, -1, 0)


hold(make)
