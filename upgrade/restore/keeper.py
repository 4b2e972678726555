# SPDX-License-Identifier: MIT
"""A second process with the page server's table of descriptors: it hands over what a dying server could not.

When a task forks, the kernel makes the descriptor of the child while the server reads the message: from then until
systemd has it only the server's table does, and a server that is killed there would leave the child with pages of
zeroes. The same goes for CRIU's connection, just accepted. So the table belongs to two processes, and the second does
nothing but wait for the death of the first. systemd starts no new server before the keeper is gone, too
(``KillMode=control-group``).
"""

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Final

from memfs import libc
from upgrade.restore import fdstore

ORPHAN: Final = "orphan"
"""Names in the FD store: ``orphan.SINCE.N`` was descriptor N of the server that ran since then."""

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/sched.h
_SYS_CLONE: Final = 56
_CLONE_FILES: Final = 0x400

_KINDS: Final = ("anon_inode:[userfaultfd]", "socket:")


class Keeper:
    """The second process."""

    def __init__(self) -> None:
        """Start it; there must be no thread yet, and SIGTERM be ignored.

        :raises OSError: if the kernel has no pidfds (before Linux 5.3), or there can be no more processes
        """
        since = time.monotonic_ns()
        death = os.pidfd_open(os.getpid())
        flags = ctypes.c_long(_CLONE_FILES | signal.SIGCHLD)
        self.pid = libc.call("clone", _SYS_CLONE, flags, *[ctypes.c_void_p()] * 4)
        if not self.pid:
            _keep(death, f"{ORPHAN}.{since:x}")

    def dismiss(self) -> None:
        """End it without a word: nothing is left to be kept."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _keep(death: int, prefix: str) -> None:
    try:
        poll = select.poll()
        poll.register(death, select.POLLIN)
        poll.poll()
        _hand_over(prefix)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:  # nothing of what the server has prepared for its own end may happen twice
        os.kill(os.getpid(), signal.SIGKILL)


def _hand_over(prefix: str) -> None:
    """Store everything; systemd keeps only what it has under no other name (service_add_fd_store in its service.c)."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(FileNotFoundError):
            if fd > 2 and os.readlink(f"/proc/self/fd/{fd}").startswith(_KINDS):
                fdstore.store(f"{prefix}.{fd}", fd)
    fdstore.barrier()
