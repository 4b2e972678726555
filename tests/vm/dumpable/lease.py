# SPDX-License-Identifier: MIT
"""Runs in the guest: a file with a lease."""

import fcntl
import os

from condition import directory, hold


def make() -> object:
    (directory() / "leased").write_text("")
    fd = os.open(directory() / "leased", os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    return fd


hold(make)
