# SPDX-License-Identifier: MIT
"""Runs in the guest: files of every kind that CRIU knows: deleted, linked, locked, a FIFO."""

import fcntl
import os
import struct

from condition import directory, hold

F_OFD_SETLK = 37


def make() -> object:
    base = directory()
    deleted = os.open(base, os.O_TMPFILE | os.O_RDWR)
    os.posix_fallocate(deleted, 0, 1 << 20)
    linked = (base / "linked").open("w")
    (base / "other").unlink(missing_ok=True)
    os.link(base / "linked", base / "other")
    (base / "linked").unlink()
    locked = [(base / f"locked{n}").open("w") for n in range(3)]
    fcntl.flock(locked[0], fcntl.LOCK_EX)
    fcntl.lockf(locked[1], fcntl.LOCK_EX)
    fcntl.fcntl(locked[2], F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    fifo = base / "fifo"
    if not fifo.exists():
        os.mkfifo(fifo)
    return (
        deleted,
        linked,
        locked,
        os.open(fifo, os.O_RDWR),
        os.open("/dev/urandom", os.O_RDONLY),
        os.open("/proc", 0),
    )


hold(make)
