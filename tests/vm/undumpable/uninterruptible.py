# SPDX-License-Identifier: MIT
"""Runs in the guest: a task in state D: it waits for the child of a vfork."""

import os
import signal

from condition import hold, syscall

CHECK = "containers.tasks"
SYS_CLONE, CLONE_VFORK = 56, 0x4000

if syscall(SYS_CLONE, CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    hold(os.getpid)
