# SPDX-License-Identifier: MIT
"""Standard output that goes to the journal: a stream to journald, which ends with the kernel.

CRIU is told to leave it out at dump. At restore systemd has opened a new one for the command that restores, with the
service's name; CRIU puts that in the place of the old one.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from upgrade.host import Host

if TYPE_CHECKING:
    from upgrade.check.sockets import UnixSocket

STREAM = "/run/systemd/journal/stdout"


def streams(host: Host, pids: Iterable[int]) -> dict[int, int]:
    """Return the streams to journald that tasks hold: inode, and the lowest descriptor it has."""
    held = _sockets(host, pids)
    if not held:
        return {}
    from upgrade.check import sockets  # not for the new kernel's path

    table = sockets.unix_sockets(host.path("/proc/self/ns/net"))
    return {inode: number for inode, number in held.items() if _goes_to_journal(table, inode)}


def _sockets(host: Host, pids: Iterable[int]) -> dict[int, int]:
    """Return the sockets that tasks hold: inode, and the lowest descriptor it has."""
    held: dict[int, int] = {}
    for pid in pids:
        for name in host.list(f"/proc/{pid}/fd"):
            with suppress(OSError):
                link = os.readlink(host.path(f"/proc/{pid}/fd/{name}"))
                if link.startswith("socket:["):
                    inode = int(link[8:-1])
                    held[inode] = min(held.get(inode, int(name)), int(name))
    return held


def _goes_to_journal(table: "Mapping[int, UnixSocket]", inode: int) -> bool:
    own = table.get(inode)
    peer = table.get(own.peer) if own is not None else None
    return peer is not None and peer.name == STREAM
