# SPDX-License-Identifier: MIT
"""Sockets other than unix sockets: which families and states CRIU dumps.

criu/sockets.c, ``dump_socket``; criu/sk-inet.c, ``can_dump_inet_sk``; criu/sk-netlink.c.
"""

import re
import socket
from collections.abc import Iterator, Sequence
from functools import partial

from upgrade.check.containers.trouble import Trouble, lasts, tell
from upgrade.check.model import Check, Finding, Status
from upgrade.check.processes import Descriptor, Process, by_container
from upgrade.check.situation import Situation
from upgrade.check.sockets import CLOSED, IPPROTO_UDPLITE, LISTENING, Socket, look
from upgrade.criu import Criu
from upgrade.errors import UpgradeError

INET = (socket.AF_INET, socket.AF_INET6)
FAMILIES = (*INET, socket.AF_UNIX, socket.AF_PACKET, socket.AF_NETLINK)
PROTOCOLS = (socket.IPPROTO_IP, socket.IPPROTO_TCP, socket.IPPROTO_UDP, IPPROTO_UDPLITE)
PINGS = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)  # criu commit a80c54484
Version = tuple[int, int]
LATER: Version = (4, 2)
TYPES = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)
MOST_GROUPS = 32
# include/linux/socket.h; Python knows not all of them
FAMILY_NAMES = {
    15: "AF_KEY",
    17: "AF_PACKET",
    24: "PPPoX",
    29: "CAN",
    30: "TIPC",
    31: "Bluetooth",
    38: "the crypto API (AF_ALG)",
    40: "vsock",
    43: "SMC",
    44: "AF_XDP",
}
PROTOCOL_NAMES = {1: "ICMP (ping)", 33: "DCCP", 58: "ICMPv6 (ping)", 115: "L2TP", 132: "SCTP", 262: "MPTCP"}
REMEDY = "stop what uses it (for the time of the upgrade), or leave the container out"


def sockets(situation: Situation) -> Iterator[Finding]:
    """Look at every socket."""
    count = sum(len(process.sockets) for process in situation.processes)
    version = criu_version() if count else LATER
    found = (
        trouble
        for _, members in by_container(situation.processes)
        for process in members
        for each, known in process.sockets
        for trouble in _trouble(process, each, known, members, version)
    )
    yield from tell(found, "sockets", f"{count}, all of kinds and in states that CRIU knows")


def _trouble(
    process: Process, each: Descriptor, known: Socket, members: Sequence[Process], version: Version
) -> Iterator[Trouble]:
    told = partial(Trouble, process, source=each.source, remedy=REMEDY)
    refused = refusal(known, version)
    if refused is not None:
        what, reason = refused
        yield told(what=f"{each.what} is {what}", reason=reason)
    elif _is_foreign(process, known, members):
        yield told(
            what=f"{each.what} is a socket of another network namespace",
            reason="CRIU can only dump sockets of the network namespaces that the tasks of the container are in",
        )
    elif known.pending and lasts(lambda: _still(process, each, known).pending > 0):
        yield told(
            what=f"{each.what} is a TCP socket that listens, with {known.pending} connections that wait for accept(2)",
            reason="CRIU cannot dump connections that have not been accepted, and these are not",
            remedy="see why the program does not accept them",
        )
    elif (
        known.family == socket.AF_NETLINK
        and known.readable
        and lasts(lambda: _still(process, each, known).readable)
    ):
        yield told(
            what=f"{each.what} is a netlink socket with messages that nobody reads",
            reason="CRIU cannot dump the queue of a netlink socket",
            remedy="see why the program does not read them, or restart it",
        )
    elif known.ulp:
        yield told(
            what=f"{each.what} is a TCP connection with {known.ulp} in the kernel",
            reason="CRIU does not know of it: after the upgrade the connection carries plain text, and breaks",
            remedy="turn the kernel's TLS off in the program (for example ssl_conf_command Options -KTLS)",
            status=Status.WARN,
        )


def refusal(known: Socket, version: Version = (0, 0)) -> tuple[str, str] | None:
    """Return what a socket is and why CRIU refuses it, or None: as far as that depends on the socket alone."""
    name = FAMILY_NAMES.get(known.family, f"family {known.family}")
    if known.family not in FAMILIES:
        return f"a socket of {name}", "CRIU cannot dump sockets of this family"
    if known.unlabelled and version < LATER:
        return (
            "a socket of which this kernel does not tell SO_PASSCRED",
            "CRIU before 4.2 takes that for an error (criu commit 4b7398595)",
        )
    if known.bpf_filter:
        return (
            "a socket with a BPF program for a filter",
            "CRIU cannot read such a filter back (SO_ATTACH_BPF)",
        )
    if known.family in INET:
        return _inet_refusal(known, version)
    if known.family == socket.AF_NETLINK:
        return _netlink_refusal(known)
    return None


def _inet_refusal(known: Socket, version: Version) -> tuple[str, str] | None:
    protocol = PROTOCOL_NAMES.get(known.protocol, f"protocol {known.protocol}")
    protocols = PROTOCOLS if version < LATER else (*PROTOCOLS, *PINGS)
    if known.type != socket.SOCK_RAW and known.protocol not in protocols:
        return f"a socket of {protocol}", "CRIU can dump TCP, UDP, UDP-Lite and raw sockets only"
    if known.type not in TYPES:
        return f"a socket of type {known.type}", "CRIU can dump stream, datagram and raw sockets only"
    if known.corked:
        return "a UDP socket that is corked (UDP_CORK)", "CRIU cannot dump a datagram that is not sent yet"
    return None


def _netlink_refusal(known: Socket) -> tuple[str, str] | None:
    if known.groups > MOST_GROUPS:
        return f"a netlink socket in group {known.groups}", "CRIU knows the first 32 groups of netlink only"
    if known.groups and not known.port_id:
        return "a netlink socket in a group, but not bound", "CRIU cannot dump it without its address"
    return None


def criu_version() -> Version:
    """Return CRIU's version; what was in Debian 13 if it cannot be asked."""
    try:
        with Criu() as criu:
            found = criu.version()
    except UpgradeError:  # another check says so
        return (4, 1)
    return found.major, found.minor


def _is_foreign(process: Process, known: Socket, members: Sequence[Process]) -> bool:
    """Tell whether a socket is of a network namespace that CRIU does not look at."""
    spaces = {int(number) for one in members for number in re.findall(r"\d+", one.namespaces.get("net", ""))}
    if not known.namespace or known.namespace in spaces or known.family == socket.AF_UNIX:
        return False
    if not process.container.host_network:
        return True
    # in the host's namespace CRIU does not ask; but what it should have found among the sockets there it misses
    connected = known.protocol == socket.IPPROTO_TCP and known.state not in (0, CLOSED)
    return known.family == socket.AF_PACKET or connected or known.state == LISTENING


def _still(process: Process, each: Descriptor, known: Socket) -> Socket:
    """Look again."""
    return look(process.pid, each.number, known.inode) or Socket(0, 0, 0, 0)


CHECKS = (Check("containers.sockets", "CRIU can dump their sockets", sockets),)
