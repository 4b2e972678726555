# SPDX-License-Identifier: MIT
"""Runs in the guest: an AIO context."""

import ctypes

from condition import hold, syscall

SYS_IO_SETUP = 206


def make() -> object:
    context = ctypes.c_ulong(0)
    syscall(SYS_IO_SETUP, 16, ctypes.byref(context))
    return context


hold(make)
