# SPDX-License-Identifier: MIT
"""Runs in the guest: a task that is traced."""

import os

from condition import hold, outside, syscall

CHECK = "containers.tasks"
SYS_PTRACE, PTRACE_SEIZE = 101, 0x4206
own = os.getpid()


def make() -> object:
    outside(lambda: syscall(SYS_PTRACE, PTRACE_SEIZE, own, 0, 0))
    return own


hold(make)
