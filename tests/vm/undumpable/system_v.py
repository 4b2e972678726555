# SPDX-License-Identifier: MIT
"""Runs in the guest: a System V segment in the host's IPC namespace."""

import ctypes

from condition import call, hold, libc

CHECK = "containers.ipc"
IPC_PRIVATE = 0


def make() -> object:
    libc.shmat.restype = ctypes.c_ssize_t
    return libc.shmat(call("shmget", IPC_PRIVATE, ctypes.c_size_t(4096), 0o600), None, 0)


hold(make)
