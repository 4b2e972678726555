# SPDX-License-Identifier: MIT
"""Sockets of preserved tasks in the host's network namespace: which ports to lock.

Read after the freeze, when no socket can be opened any more: so the tables are parsed once for all tasks, and not
with psutil, which parses them for every process anew.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from upgrade.host import Host

TCP_TABLES = ("tcp", "tcp6")
TABLES = (*TCP_TABLES, "udp", "udp6")
# include/net/tcp_states.h
TCP_ESTABLISHED, SYN_RECEIVED, FIN_WAIT1, LAST_ACK, LISTENING, CLOSING = 1, 3, 4, 9, 10, 11


@dataclass(frozen=True, slots=True)
class Socket:
    """A line of ``/proc/net/tcp`` and the like (proc_net_tcp.rst)."""

    table: str
    address: str  # hexadecimal, as the kernel prints it
    port: int
    state: int
    queued: int = 0
    """Bytes that wait to be read; of one that listens, connections that wait to be accepted."""
    unsent: int = 0
    """Bytes that are not acknowledged yet; the end (FIN) is one."""

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        """The local address; the kernel prints it in words of the machine's byte order."""
        words = [bytes.fromhex(self.address[at : at + 8])[::-1] for at in range(0, len(self.address), 8)]
        found = ip_address(b"".join(words))
        return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found

    @property
    def is_established(self) -> bool:
        """Tell whether this is one end of a TCP connection."""
        return self.is_tcp and self.state == TCP_ESTABLISHED

    @property
    def is_tcp(self) -> bool:
        """Tell TCP from UDP."""
        return self.table.startswith("tcp")


def table(host: Host, directory: str = "/proc/net") -> dict[int, Socket]:
    """Return the bound sockets of a network namespace by their inodes; the default is the host's."""
    return {inode: found for inode, found in lines(host, directory) if inode}


def lines(host: Host, directory: str, names: Iterable[str] = TABLES) -> Iterator[tuple[int, Socket]]:
    """Yield the sockets of a network namespace, with their inodes: 0 for those that no process has."""
    for name in names:
        for line in host.read_or(f"{directory}/{name}", "").splitlines()[1:]:
            words = line.split()
            address, _, port = words[1].partition(":")
            unsent, _, queued = words[4].partition(":")
            numbers = (int(word, 16) for word in (port, words[3], queued, unsent))
            yield int(words[9]), Socket(name, address, *numbers)


def of_pids(host: Host, pids: Iterable[int], sockets: dict[int, Socket]) -> list[Socket]:
    """Return the sockets that some processes hold."""
    return [sockets[inode] for inode in sorted(inodes(host, pids) & sockets.keys())]


def inodes(host: Host, pids: Iterable[int]) -> set[int]:
    """Return the inodes of all sockets that some processes hold."""
    return {inode for pid in pids for inode in _inodes(host, pid)}


def ports(sockets: Iterable[Socket]) -> tuple[int, ...]:
    """Return the local ports of sockets."""
    return tuple(sorted({socket.port for socket in sockets} - {0}))


def _inodes(host: Host, pid: int) -> Iterable[int]:
    directory = f"/proc/{pid}/fd"
    for name in host.list(directory):
        try:
            target = os.readlink(host.path(f"{directory}/{name}"))
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])
