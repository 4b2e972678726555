# SPDX-License-Identifier: MIT
"""Asking the peers of restored connections to retransmit at once.

What a peer sent into the silence it retransmits at doubling intervals, so that it may wait as long again as the
downtime lasted. An ICMP "host unreachable" about the packet that it waits for takes one doubling back and, where the
shorter interval has passed already, makes it retransmit now (RFC 6069; Linux: tcp_ld_RTO_revert() in
net/ipv4/tcp_ipv4.c). Peers that do not know this ignore it: an ICMP of this kind never ends a connection
(RFC 1122, 4.2.3.9).
"""

import logging
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger(__name__)

# 15 doublings of 200 ms are nearly two hours; net.ipv4.tcp_retries2 gives up at 15
DOUBLINGS = 15

# include/uapi/linux/icmp.h
ICMP_DEST_UNREACH = 3
ICMP_HOST_UNREACH = 1


def peers(connections: Iterable[Mapping[str, Any]]) -> None:
    """Nudge the other end of every connection; failing to is no failure.

    A connection is ``local``, ``remote`` (address and port each) and ``expected``: the sequence number of the next
    byte from the peer.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            for connection in connections:
                try:
                    _nudge(raw, connection)
                except OSError as e:
                    log.warning("cannot nudge %s: %s", connection["remote"][0], e)
    except OSError as e:
        log.warning("cannot nudge the peers of restored connections: %s", e)


def _nudge(raw: socket.socket, connection: Mapping[str, Any]) -> None:
    message = unreachable(connection["local"], connection["remote"], connection["expected"])
    for _ in range(DOUBLINGS):
        raw.sendto(message, (connection["remote"][0], 0))


def unreachable(local: tuple[str, int], remote: tuple[str, int], expected: int) -> bytes:
    """Return the ICMP message about the peer's packet that begins at ``expected``."""
    quoted = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        40,
        0,
        0,
        64,
        socket.IPPROTO_TCP,
        0,
        socket.inet_aton(remote[0]),
        socket.inet_aton(local[0]),
    )
    quoted = quoted[:10] + struct.pack("!H", checksum(quoted)) + quoted[12:]
    quoted += struct.pack("!HHI", remote[1], local[1], expected & 0xFFFFFFFF)
    head = struct.pack("!BBHI", ICMP_DEST_UNREACH, ICMP_HOST_UNREACH, 0, 0)
    return head[:2] + struct.pack("!H", checksum(head + quoted)) + head[4:] + quoted


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
