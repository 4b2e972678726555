# SPDX-License-Identifier: MIT
"""Connections that wait for accept(2): CRIU dumps none (criu/sk-inet.c, ``can_dump_inet_sk``).

A server that clients connect to all the time has one at almost any moment. So new ones are turned away before the
freeze (``netlock.door()``: who begins a connection tries again after a second, as always when a packet is lost), those
under way are waited for, and where one still waits after the freeze its container is thawed and frozen again.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from upgrade import cgroup
from upgrade.dump import sockets
from upgrade.dump.sockets import LISTENING, SYN_RECEIVED, Socket
from upgrade.engines.base import Container
from upgrade.errors import UpgradeError
from upgrade.host import Host

WAIT_S = 0.5
"""For connections that are being made when the door is closed: round trips of the clients."""
ATTEMPTS = 20
PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Doors:
    """Where others connect to: the ports that each container listens at, by its number."""

    listeners: Mapping[int, Sequence[Socket]]
    arriving: int
    """Connections that are half made."""

    @property
    def ports(self) -> dict[int, tuple[int, ...]]:
        """The ports."""
        return {number: sockets.ports(found) for number, found in self.listeners.items()}

    @property
    def waiting(self) -> dict[int, dict[int, int]]:
        """How many connections wait at which port of which container, if any do."""
        found = {n: {each.port: each.queued for each in s if each.queued} for n, s in self.listeners.items()}
        return {number: waiting for number, waiting in found.items() if waiting}


def look(host: Host, containers: Iterable[Container]) -> Doors:
    """Look at the sockets at which containers listen."""
    own: dict[int, Sequence[Socket]] = {}
    arriving = 0
    tables: dict[str, list[tuple[int, Socket]]] = {}
    for number, container in enumerate(containers):
        directory = "/proc/net" if container.host_network else f"/proc/{container.root_pid}/net"
        if directory not in tables:
            tables[directory] = list(sockets.lines(host, directory))
        held = sockets.inodes(host, cgroup.pids(host, container.cgroup))
        listening = [
            (inode, each) for inode, each in tables[directory] if each.state == LISTENING and each.is_tcp
        ]
        own[number] = [each for inode, each in listening if inode in held]
        ports = set(sockets.ports(own[number]))
        arriving += sum(
            each.is_tcp and each.state == SYN_RECEIVED and each.port in ports for _, each in tables[directory]
        )
    return Doors(own, arriving)


def wait(host: Host, containers: Sequence[Container]) -> None:
    """Wait until all connections are accepted that were on their way, but not for long. The containers run."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        seen = look(host, containers)
        if not seen.arriving and not seen.waiting:
            return
        time.sleep(PAUSE_S)


def settle(host: Host, containers: Sequence[Container], freeze_timeout_s: float) -> int:
    """Thaw and freeze frozen containers until no connection waits; return how often that was needed.

    :raises UpgradeError: naming container and port, if the program does not accept them
    """
    for attempt in range(ATTEMPTS):
        waiting = look(host, containers).waiting
        if not waiting:
            return attempt
        names = [containers[number].cgroup for number in waiting]
        for name in names:
            cgroup.thaw(host, name)
        time.sleep(PAUSE_S)
        cgroup.freeze(host, names, freeze_timeout_s)
    number, ports = next(iter(look(host, containers).waiting.items()), (0, {}))
    if not ports:
        return ATTEMPTS
    raise UpgradeError(
        f"{sum(ports.values())} connections wait for accept(2) at port {', '.join(map(str, ports))}; "
        "CRIU cannot dump them, and the program does not accept them",
        subject=containers[number].name,
        hint="see why it does not",
    )
