# SPDX-License-Identifier: MIT
"""Runs in the guest: a Landlock ruleset."""

import ctypes

from condition import hold, syscall

CHECK = "containers.descriptors"
SYS_LANDLOCK_CREATE_RULESET, READ_FILE = 444, 4
hold(lambda: syscall(SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(ctypes.c_uint64(READ_FILE)), 8, 0))
