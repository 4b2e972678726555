# SPDX-License-Identifier: MIT
"""Sockets of other processes: what getsockopt(2) says of them, and what the kernel lists of unix sockets.

A socket is looked at through a duplicate of its descriptor (pidfd_getfd(2)). Only options are read, no data.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from upgrade import linux

# include/uapi/asm-generic/socket.h
SO_PROTOCOL, SO_DOMAIN, SO_GET_FILTER, SO_PASSSEC, SO_PASSPIDFD = 38, 39, 26, 34, 76
SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h
UDP_CORK, TCP_ULP, IPPROTO_UDPLITE = 1, 31, 136
SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS = 270, 9  # include/uapi/linux/netlink.h
_TCP_STATE = struct.Struct("=B")
_TCP_UNACKED = struct.Struct("=24xI")  # include/uapi/linux/tcp.h, struct tcp_info

# include/net/tcp_states.h
ESTABLISHED, CLOSED, LISTENING = 1, 7, 10

# include/uapi/linux/{netlink,sock_diag,unix_diag}.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP = 4, 20, 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SHOW_NAME, _SHOW_PEER, _SHOW_ICONS, _SHOW_RQLEN = 1, 4, 8, 16
_NAME, _PEER, _ICONS, _RQLEN, _SHUTDOWN = 0, 2, 3, 4, 6
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE = struct.Struct("=BBBxIII")
_ATTRIBUTE = struct.Struct("=HH")
_ALL_STATES = 0xFFFFFFFF
_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket, as getsockopt(2) describes it."""

    inode: int
    family: int
    type: int
    protocol: int
    namespace: int = 0
    """The inode of its network namespace; 0 if not known."""
    state: int = CLOSED
    """Of TCP."""
    pending: int = 0
    """How many connections wait for accept(2)."""
    corked: bool = False
    bpf_filter: bool = False
    port_id: int = 0
    """Of netlink."""
    groups: int = 0
    """The highest number of a multicast group that it has joined."""
    readable: bool = False
    labelled: bool = False
    """What it receives comes with the credentials of its sender."""
    unlabelled: bool = False
    """The kernel refuses to tell whether it would be :attr:`labelled`: since Linux 6.16 for most families."""
    ulp: str = ""
    """What lies over TCP, for example ``tls``."""


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket, as the kernel lists it."""

    inode: int
    type: int
    state: int
    name: str = ""
    peer: int = 0
    waiting: tuple[int, ...] = ()
    """Who has connected and waits for accept(2); 0 who has gone already."""
    received: int = 0
    """Bytes (or, of one that listens, connections) that wait."""
    sent: int = 0
    shutdown: int = 0


def look(pid: int, number: int, inode: int) -> Socket | None:
    """Return what a descriptor of a process is; None if it is closed by now."""
    try:
        fd = linux.duplicate_of(pid, number)
    except OSError as e:
        if e.errno in (errno.ESRCH, errno.EBADF):
            return None
        raise
    if os.fstat(fd).st_ino != inode:  # it has been closed, and another one opened
        os.close(fd)
        return None
    # nobody asks for the name of this one: it would be wrong if its family is another
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd) as held:
        return _facts(held, inode)


def _facts(held: socket.socket, inode: int) -> Socket:
    family, kind, protocol = (
        held.getsockopt(socket.SOL_SOCKET, option) for option in (SO_DOMAIN, socket.SO_TYPE, SO_PROTOCOL)
    )
    is_inet = family in (socket.AF_INET, socket.AF_INET6)
    is_tcp = is_inet and kind == socket.SOCK_STREAM and protocol == socket.IPPROTO_TCP
    state = pending = 0
    if is_tcp:
        information = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        state = _TCP_STATE.unpack_from(information)[0]
        pending = _TCP_UNACKED.unpack_from(information)[0] if state == LISTENING else 0
    is_udp = is_inet and kind == socket.SOCK_DGRAM and protocol in (socket.IPPROTO_UDP, IPPROTO_UDPLITE)
    port_id, groups, readable = _netlink(held) if family == socket.AF_NETLINK else (0, 0, False)
    labels = (socket.SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD) if family == socket.AF_UNIX else ()
    return Socket(
        inode=inode,
        family=family,
        type=kind,
        protocol=protocol,
        namespace=_namespace(held),
        state=state,
        pending=pending,
        corked=is_udp and bool(held.getsockopt(socket.IPPROTO_UDP, UDP_CORK)),
        bpf_filter=_has_bpf_filter(held),
        port_id=port_id,
        groups=groups,
        readable=readable,
        labelled=any(_option(held, socket.SOL_SOCKET, option) for option in labels),
        unlabelled=_refuses(held, socket.SO_PASSCRED),
        ulp=_ulp(held) if is_tcp else "",
    )


def _option(held: socket.socket, level: int, option: int) -> int:
    try:
        return held.getsockopt(level, option)
    except OSError:  # this kernel does not know it
        return 0


def _refuses(held: socket.socket, option: int) -> bool:
    try:
        held.getsockopt(socket.SOL_SOCKET, option)
    except OSError as e:
        return e.errno == errno.EOPNOTSUPP
    return False


def _namespace(held: socket.socket) -> int:
    try:
        fd = fcntl.ioctl(held.fileno(), SIOCGSKNS)
    except OSError:  # not every family can be asked
        return 0
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _has_bpf_filter(held: socket.socket) -> bool:
    """Tell whether its filter is an extended BPF program, which cannot be read back (net/core/filter.c)."""
    try:
        held.getsockopt(socket.SOL_SOCKET, SO_GET_FILTER, 0)
    except OSError as e:
        return e.errno == errno.EACCES
    return False


def _ulp(held: socket.socket) -> str:
    try:
        return held.getsockopt(socket.IPPROTO_TCP, TCP_ULP, 16).rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""


def _netlink(held: socket.socket) -> tuple[int, int, bool]:
    """Return port, highest group, and whether messages wait."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0, fileno=os.dup(held.fileno())) as known:
        port_id = known.getsockname()[0]
    groups = held.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 512)
    joined = int.from_bytes(groups, "little")
    return port_id, joined.bit_length(), bool(select.select([held], [], [], 0)[0])


def unix_sockets(namespace: Path) -> Mapping[int, UnixSocket]:
    """Return the unix sockets of a network namespace by their inodes.

    :param namespace: its link in ``/proc/PID/ns``
    """
    with _diag_socket(namespace) as asked:
        message = _REQUEST.pack(
            socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME | _SHOW_PEER | _SHOW_ICONS | _SHOW_RQLEN, 0, 0
        )
        length = _HEADER.size + len(message)
        asked.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + message)
        return {found.inode: found for found in map(_unix_socket, _messages(asked))}


def _diag_socket(namespace: Path) -> socket.socket:
    """Return a socket that sees another network namespace: it is made by a thread that enters it."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def work() -> None:
        try:
            with open(namespace, "rb") as space:
                linux.enter_network_namespace(space.fileno())
            made.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG))
        except OSError as e:
            failed.append(e)

    thread = threading.Thread(target=work, name="network namespace")  # the namespace is the thread's own
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _messages(asked: socket.socket) -> Iterator[bytes]:
    while True:
        data = asked.recv(_BUFFER_BYTES)
        at = 0
        while at < len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            body = data[at + _HEADER.size : at + length]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                number = -int.from_bytes(body[:4], "little", signed=True)
                raise OSError(number, f"sock_diag: {os.strerror(number)}")
            yield body
            at += (length + 3) & ~3


def _unix_socket(body: bytes) -> UnixSocket:
    _, kind, state, inode, _, _ = _MESSAGE.unpack_from(body)
    found: dict[int, bytes] = {}
    at = _MESSAGE.size
    while at + _ATTRIBUTE.size <= len(body):
        length, name = _ATTRIBUTE.unpack_from(body, at)
        found[name] = body[at + _ATTRIBUTE.size : at + length]
        at += (max(length, _ATTRIBUTE.size) + 3) & ~3
    received, sent = struct.unpack("=II", found[_RQLEN][:8]) if _RQLEN in found else (0, 0)
    icons = found.get(_ICONS, b"")
    return UnixSocket(
        inode=inode,
        type=kind,
        state=state,
        name=_shown(found.get(_NAME, b"")),
        peer=int.from_bytes(found.get(_PEER, b""), "little"),
        waiting=struct.unpack(f"={len(icons) // 4}I", icons),
        received=received,
        sent=sent,
        shutdown=found.get(_SHUTDOWN, b"\0")[0],
    )


def _shown(name: bytes) -> str:
    text = name.decode(errors="replace")
    return "@" + text[1:] if text.startswith("\0") else text.rstrip("\0")
