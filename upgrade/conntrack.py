# SPDX-License-Identifier: MIT
"""Connections that the host translates for containers: read in the old kernel, put back in the new one.

A published port works by translating addresses (NAT), and which connection has which is known to connection tracking
only, which ends with the kernel. A client's next packet would find the way again by the rule of the port, but a packet
of the container that comes first would get an address of its own choice, and the client would answer with RST.

Speaks ctnetlink itself (include/uapi/linux/netfilter/nfnetlink_conntrack.h): this is the new kernel's path, where a
library takes longer to import than everything here takes.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any

NETLINK_NETFILTER = 12
NEW, GET = 0x100, 0x101  # of NFNL_SUBSYS_CTNETLINK
REQUEST, ACK, DUMP, EXCLUSIVE, CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
ERROR, DONE = 2, 3
NESTED = 0x8000
TYPE_MASK = 0x3FFF

# enum ctattr_type
TUPLE_ORIGINAL, TUPLE_REPLY, STATUS, PROTOINFO, NAT_SOURCE, TIMEOUT, MARK, NAT_DESTINATION = (
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    13,
)
# include/uapi/linux/netfilter/nf_conntrack_common.h
CONFIRMED, CARRIED_STATUS = 0x8, 0x2 | 0x4  # seen reply, assured
# include/uapi/linux/netfilter/nf_conntrack_tcp.h: established up to last ack
TCP_STATES = range(3, 7)
LIBERAL = 0x8
"""Sequence numbers are not checked, as with every connection that is picked up in its middle."""
BUFFER_BYTES = 1 << 18

Flow = Mapping[str, Any]
"""A connection: ``original`` and ``reply`` are (source, port, destination, port), the rest as the kernel has it."""


def of(addresses: Iterable[str]) -> tuple[Flow, ...]:
    """Return the TCP connections that have one of some addresses at an end."""
    wanted = set(addresses)
    if not wanted:
        return ()
    families = {socket.AF_INET6 if ":" in address else socket.AF_INET for address in wanted}
    found = []
    with _connect() as line:
        for family in sorted(families):
            line.send(_message(GET, REQUEST | DUMP, family, b""))
            for body in _answers(line):
                flow = _flow(_attributes(body[4:]))
                if flow and wanted & {flow["original"][0], flow["original"][2], *flow["reply"][0:3:2]}:
                    found.append(flow)
    return tuple(found)


def put_back(flows: Iterable[Flow]) -> None:
    """Have the kernel know connections again; those that it knows are left alone.

    :raises OSError: if it does not take one
    """
    flows = list(flows)
    if not flows:
        return
    with _connect() as line:
        for flow in flows:
            family = socket.AF_INET6 if ":" in flow["original"][0] else socket.AF_INET
            line.send(_message(NEW, REQUEST | ACK | CREATE | EXCLUSIVE, family, _new(flow)))
            try:
                for _ in _answers(line):
                    pass
            except FileExistsError:
                continue


def from_outside(peers: Iterable[Mapping[str, Any]], flows: Iterable[Flow]) -> tuple[Mapping[str, Any], ...]:
    """Return the peers of connections with the addresses that the peers themselves see."""
    flows = list(flows)
    found = []
    for peer in peers:
        own, other = tuple(peer["local"]), tuple(peer["remote"])
        for flow in flows:
            original, reply = tuple(flow["original"]), tuple(flow["reply"])
            if reply == own + other:  # it came in
                found.append({**peer, "local": original[2:], "remote": original[:2]})
            elif original == own + other:
                found.append({**peer, "local": reply[2:], "remote": reply[:2]})
    return tuple(found)


def _connect() -> socket.socket:
    line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * BUFFER_BYTES)
    line.bind((0, 0))
    return line


def _message(kind: int, flags: int, family: int, attributes: bytes) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _answers(line: socket.socket) -> Iterator[bytes]:
    """Return the bodies of the answers to a message, up to the one that ends them."""
    while True:
        data = line.recv(BUFFER_BYTES)
        at = 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            body = data[at + 16 : at + length]
            if kind == DONE:
                return
            if kind == ERROR:
                error = -struct.unpack_from("=i", body)[0]
                if error:
                    raise OSError(error, f"connection tracking: {os.strerror(error)}")
                return
            yield body
            at += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        found[kind & TYPE_MASK] = data[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
    return found


def _flow(attributes: Mapping[int, bytes]) -> Flow | None:
    """Return a connection of TCP that lives; None for all others."""
    tcp = _attributes(_attributes(attributes.get(PROTOINFO, b"")).get(1, b""))
    if not tcp or tcp[1][0] not in TCP_STATES:
        return None
    return {
        "original": _tuple(attributes[TUPLE_ORIGINAL]),
        "reply": _tuple(attributes[TUPLE_REPLY]),
        "state": tcp[1][0],
        "scales": [tcp[2][0], tcp[3][0]],
        "flags": [tcp[4][0], tcp[5][0]],
        "status": struct.unpack(">I", attributes[STATUS])[0],
        "timeout_s": struct.unpack(">I", attributes[TIMEOUT])[0],
        "mark": struct.unpack(">I", attributes.get(MARK, bytes(4)))[0],
    }


def _tuple(data: bytes) -> list[Any]:
    parts = _attributes(data)
    ends, protocol = _attributes(parts[1]), _attributes(parts[2])
    source, destination = (str(ip_address(ends.get(n) or ends[n + 2])) for n in (1, 2))
    ports = [struct.unpack(">H", protocol[n])[0] for n in (2, 3)]
    return [source, ports[0], destination, ports[1]]


def _new(flow: Flow) -> bytes:
    """Return the attributes of a connection to be added.

    As the kernel computes what the translation does to the replies, it is given those of a connection without one.
    """
    source, source_port, destination, destination_port = flow["original"]
    replier, replier_port, answered, answered_port = flow["reply"]
    made = _nest(TUPLE_ORIGINAL, _ends(source, source_port, destination, destination_port))
    made += _nest(TUPLE_REPLY, _ends(destination, destination_port, source, source_port))
    if (replier, replier_port) != (destination, destination_port):
        made += _nest(NAT_DESTINATION, _translation(replier, replier_port))
    if (answered, answered_port) != (source, source_port):
        made += _nest(NAT_SOURCE, _translation(answered, answered_port))
    made += _attribute(STATUS, struct.pack(">I", CONFIRMED | flow["status"] & CARRIED_STATUS))
    made += _attribute(TIMEOUT, struct.pack(">I", flow["timeout_s"]))
    if flow["mark"]:
        made += _attribute(MARK, struct.pack(">I", flow["mark"]))
    tcp = _attribute(1, bytes([flow["state"]]))
    for number in (0, 1):
        tcp += _attribute(2 + number, bytes([flow["scales"][number]]))
        tcp += _attribute(4 + number, bytes([flow["flags"][number] | LIBERAL, 0xFF]))
    return made + _nest(PROTOINFO, _nest(1, tcp))


def _ends(source: str, source_port: int, destination: str, destination_port: int) -> bytes:
    first = 3 if ":" in source else 1
    ends = _attribute(first, ip_address(source).packed)
    ends += _attribute(first + 1, ip_address(destination).packed)
    protocol = _attribute(1, bytes([socket.IPPROTO_TCP]))
    protocol += _attribute(2, struct.pack(">H", source_port))
    protocol += _attribute(3, struct.pack(">H", destination_port))
    return _nest(1, ends) + _nest(2, protocol)


def _translation(address: str, port: int) -> bytes:
    lowest, highest = (4, 5) if ":" in address else (1, 2)
    packed, number = ip_address(address).packed, struct.pack(">H", port)
    ports = _attribute(1, number) + _attribute(2, number)
    return _attribute(lowest, packed) + _attribute(highest, packed) + _nest(3, ports)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | NESTED, value)
