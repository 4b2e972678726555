# SPDX-License-Identifier: MIT
"""Runs in the guest: a large deleted file."""

import os

from condition import directory, hold

CHECK = "containers.files"
SIZE = 65 << 20


def make() -> object:
    fd = os.open(directory(), os.O_TMPFILE | os.O_RDWR)
    os.posix_fallocate(fd, 0, SIZE)
    return fd


hold(make)
