# SPDX-License-Identifier: MIT
"""Print a seccomp filter for x86-64, under which io_uring_setup(2) fails as if the kernel had none."""

import errno
import struct
import sys

IO_URING_SETUP = 425
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
ALLOW, ERROR = 0x7FFF0000, 0x00050000
PROGRAM = (
    (LOAD, 0, 0, 0),  # the number of the system call
    (IF_EQUAL, 0, 1, IO_URING_SETUP),
    (RETURN, 0, 0, ERROR | errno.ENOSYS),
    (RETURN, 0, 0, ALLOW),
)
sys.stdout.buffer.write(b"".join(struct.pack("=HBBI", *instruction) for instruction in PROGRAM))
