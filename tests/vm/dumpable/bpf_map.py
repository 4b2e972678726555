# SPDX-License-Identifier: MIT
"""Runs in the guest: a BPF map that is a hash."""

import ctypes
import struct

from condition import hold, syscall

SYS_BPF, BPF_MAP_CREATE, BPF_MAP_TYPE_HASH = 321, 0, 1
ATTRIBUTES = struct.pack("=IIII", BPF_MAP_TYPE_HASH, 4, 4, 16).ljust(72, b"\0")
hold(lambda: syscall(SYS_BPF, BPF_MAP_CREATE, ctypes.c_char_p(ATTRIBUTES), 72))
