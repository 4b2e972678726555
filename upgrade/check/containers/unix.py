# SPDX-License-Identifier: MIT
"""Unix sockets: CRIU wants both ends of a connection in the container (criu/sk-unix.c, ``dump_one_unix_fd``).

A datagram socket may be connected with somebody outside who has a name, for example ``/dev/log``.
"""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial

from upgrade import cgroup
from upgrade.check import sockets
from upgrade.check.containers import options, trouble
from upgrade.check.containers.options import DumpOptions
from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding
from upgrade.check.processes import Descriptor, Process, by_container
from upgrade.check.situation import Situation
from upgrade.check.sockets import ESTABLISHED, LISTENING, Socket, UnixSocket

BOTH = 3  # include/net/sock.h, SHUTDOWN_MASK
CLOSE = "have the program close the connection, or leave the container out; connections within the container are fine"
Table = Mapping[int, UnixSocket]
Owners = Mapping[int, str]
"""The preserved container that has a socket, by the socket's inode."""


def unix(situation: Situation) -> Iterator[Finding]:
    """Look at every unix socket."""
    owners = {
        known.inode: process.container.name
        for process in situation.processes
        for _, known in process.sockets
        if known.family == socket.AF_UNIX
    }
    found = (
        each
        for container, members in by_container(situation.processes)
        for each in _of_container(members, options.of(situation.host, container), owners)
    )
    yield from tell(found, "unix sockets", "none is connected with somebody outside of its container")


def _of_container(members: Sequence[Process], chosen: DumpOptions, owners: Owners) -> Iterator[Trouble]:
    """Look several times, as a connection that is being made or taken down looks odd for a moment."""
    found = _look(members, chosen, owners)
    for _ in range(trouble.LOOKS - 1):
        if not found:
            return
        time.sleep(trouble.PAUSE_S)
        again = _look(_afresh(members), chosen, owners)
        found = {inode: each for inode, each in found.items() if inode in again}
    yield from found.values()


def _look(members: Sequence[Process], chosen: DumpOptions, owners: Owners) -> dict[int, Trouble]:
    held: dict[int, tuple[Process, Descriptor, Socket]] = {}
    for process in members:
        for each, known in process.sockets:
            if known.family == socket.AF_UNIX:
                held.setdefault(known.inode, (process, each, known))
    table = _table(members) if held else {}
    found = {}
    for inode, (process, each, known) in held.items():
        refused = refusal(inode, known, table, held.keys(), chosen, owners)
        if refused is not None:
            what, reason = refused
            found[inode] = Trouble(process, f"{each.what} is {what}", each.source, reason, CLOSE)
    return found


def _afresh(members: Sequence[Process]) -> list[Process]:
    """Return the processes that are in the container now."""
    first = members[0]
    pids = {process.pid for process in members} | {*cgroup.pids(first.host, first.container.cgroup)}
    return [Process(first.host, first.container, pid, first.tables) for pid in sorted(pids)]


def _table(members: Sequence[Process]) -> Table:
    """Return the unix sockets of all network namespaces that the tasks are in."""
    found: dict[int, UnixSocket] = {}
    spaces = {process.namespaces.get("net"): process for process in members}
    for process in spaces.values():
        try:
            found.update(sockets.unix_sockets(process.host.path(f"{process.directory}/ns/net")))
        except FileNotFoundError:  # it has ended
            continue
    return found


def refusal(
    inode: int, known: Socket, table: Table, held: Set[int], chosen: DumpOptions, owners: Owners
) -> tuple[str, str] | None:
    """Return what a unix socket is and why CRIU refuses it, or None."""
    seen = table.get(inode)
    if seen is None:
        return (
            "a unix socket of another network namespace",
            "CRIU can only dump sockets of the network namespaces that the tasks of the container are in",
        )
    if seen.received and seen.state != LISTENING and known.labelled:
        return (
            "a unix socket with data that waits, and whose data comes with credentials (SO_PASSCRED)",
            "CRIU cannot dump credentials that wait in a socket",
        )
    if seen.peer:
        return _connected(seen, table, held, chosen, owners)
    if seen.state == ESTABLISHED and seen.type != socket.SOCK_DGRAM:
        return _not_accepted(seen, table)
    if seen.state == LISTENING and 0 in seen.waiting:
        return (
            f"the unix socket {seen.name}, to which somebody has connected who is gone, and was not accepted",
            "CRIU cannot dump such a connection",
        )
    return None


def _connected(
    seen: UnixSocket, table: Table, held: Set[int], chosen: DumpOptions, owners: Owners
) -> tuple[str, str] | None:
    peer = table.get(seen.peer)
    told = partial("a unix socket that is connected with {}".format)
    if peer is None:
        return told(
            "another network namespace"
        ), "CRIU cannot dump a connection of which it does not find the other end"
    name = peer.name or "a socket without a name"
    if peer.peer != seen.inode and not peer.name:
        return told(name), "CRIU cannot dump a connection whose other end is connected with somebody else"
    if peer.inode in held:
        return None
    if f"unix[{seen.inode}]" in chosen.external:  # the engine connects it again
        return None
    owner = owners.get(peer.inode)
    where = f"{name} {f'of the container {owner}' if owner else 'outside of the container'}"
    if not chosen.ext_unix_sk:
        return told(where), "CRIU cannot dump half of a connection without being told to"
    if peer.type != socket.SOCK_DGRAM:
        apart = ", and each container is dumped by itself" if owner else ""
        return told(where), f"CRIU cannot dump half of a stream connection{apart}"
    if not peer.name:
        return told(where), "CRIU cannot connect it again with a socket that has no name"
    return None


def _not_accepted(seen: UnixSocket, table: Table) -> tuple[str, str] | None:
    """Look at a connection without another end: it waits for accept(2), or its other end has gone."""
    listener = next((one for one in table.values() if seen.inode in one.waiting), None)
    if listener is None:
        if seen.shutdown == BOTH:
            return None
        return "a unix socket whose other end is gone", "CRIU cannot dump half of a connection"
    if seen.sent:
        return (
            f"a unix socket that has sent data to {listener.name or 'a socket'}, which has not accepted it",
            "CRIU cannot dump what was sent over a connection that is not accepted yet",
        )
    return None


CHECKS = (Check("containers.unix", "their unix sockets are connected among themselves", unix),)
