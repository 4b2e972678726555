# SPDX-License-Identifier: MIT
"""Runs in the guest: a process that shares its working directory with its parent (CLONE_FS)."""

import signal
import time

from condition import hold, syscall

CHECK = "containers.sharing"
SYS_CLONE, CLONE_FS = 56, 0x200


def make() -> object:
    child = syscall(SYS_CLONE, CLONE_FS | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        time.sleep(100000)
    return child


hold(make)
