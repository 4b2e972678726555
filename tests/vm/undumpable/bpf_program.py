# SPDX-License-Identifier: MIT
"""Runs in the guest: a BPF program."""

import ctypes
import struct

from condition import hold, syscall

CHECK = "containers.descriptors"
SYS_BPF, BPF_PROG_LOAD, BPF_PROG_TYPE_SOCKET_FILTER = 321, 5, 1
RETURN_NOTHING = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit


def load() -> int:
    code, licence = ctypes.create_string_buffer(RETURN_NOTHING), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ", BPF_PROG_TYPE_SOCKET_FILTER, 2, ctypes.addressof(code), ctypes.addressof(licence)
    ).ljust(72, b"\0")
    return syscall(SYS_BPF, BPF_PROG_LOAD, ctypes.c_char_p(attributes), 72)


hold(load)
