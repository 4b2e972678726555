# SPDX-License-Identifier: MIT
"""Runs in the guest: a userfaultfd."""

from condition import hold, syscall

CHECK = "containers.descriptors"
SYS_USERFAULTFD, USER_MODE_ONLY = 323, 1
hold(lambda: syscall(SYS_USERFAULTFD, USER_MODE_ONLY))
