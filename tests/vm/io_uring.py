# SPDX-License-Identifier: MIT
"""Runs in the guest: a task that holds an io_uring, which CRIU cannot dump (criu issue #2131)."""

import ctypes
import time

SYS_IO_URING_SETUP = 425  # arch/x86/entry/syscalls/syscall_64.tbl
parameters = ctypes.create_string_buffer(120)  # include/uapi/linux/io_uring.h: struct io_uring_params
assert ctypes.CDLL(None).syscall(SYS_IO_URING_SETUP, 4, parameters) >= 0
while True:
    time.sleep(0.1)
