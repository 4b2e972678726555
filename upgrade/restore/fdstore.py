# SPDX-License-Identifier: MIT
"""Descriptors that outlive their process: the FD store of a systemd service.

Protocol: sd_notify(3) and sd_listen_fds(3). What was stored is there again when systemd starts the service anew, and
closed when the service ends for good.
"""

import array
import os
import select
import socket
from collections.abc import Sequence

# sd-daemon.h
LISTEN_FDS_START = 3
BARRIER_MS = 10_000


def notify(*assignments: str, fds: Sequence[int] = ()) -> bool:
    """Tell systemd something; returns False where there is none to tell.

    When this has returned, systemd has the descriptors, even if we die now: they wait in its socket.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return False
    address = "\0" + name[1:] if name.startswith("@") else name
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.sendmsg(["\n".join(assignments).encode()], rights, 0, address)
    return True


def ready(status: str) -> None:
    """Tell systemd that the service works."""
    notify("READY=1", f"STATUS={status}")


def store(name: str, fd: int) -> bool:
    """Keep a descriptor under a name. Without FDPOLL=0 systemd drops those whose other end hangs up."""
    return notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=[fd])


def remove(name: str) -> bool:
    """Close the stored descriptor of a name."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def barrier() -> None:
    """Wait until systemd has dealt with everything that it was told, but not for ever (sd_notify_barrier(3))."""
    ours, theirs = os.pipe()
    try:
        told = notify("BARRIER=1", fds=[theirs])
    finally:
        os.close(theirs)
    if told:
        poll = select.poll()
        poll.register(ours, 0)  # POLLHUP: systemd has closed the other end
        poll.poll(BARRIER_MS)
    os.close(ours)


def inherited() -> dict[str, int]:
    """Return the descriptors that this process was started with, by name. They are taken once."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found = {}
    for fd, name in zip(range(LISTEN_FDS_START, LISTEN_FDS_START + count), names, strict=True):
        os.set_inheritable(fd, False)
        found[name] = fd
    return found
