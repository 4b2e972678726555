# SPDX-License-Identifier: MIT
"""Connections that wait for accept(2): CRIU dumps none (criu/sk-inet.c, ``can_dump_inet_sk``).

A server that clients connect to all the time has one at almost any moment. So new ones are turned away before the
freeze (``netlock.door()``: who begins a connection tries again after a second, as always when a packet is lost), those
under way are waited for, and where one still waits after the freeze its container is thawed and frozen again.

What a program has sent before it closed a connection belongs to nobody any more, and CRIU does not see it. So a moment
is given to the kernel to get rid of it before the network is locked.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from upgrade import cgroup
from upgrade.dump import sockets
from upgrade.dump.sockets import CLOSING, FIN_WAIT1, LAST_ACK, LISTENING, SYN_RECEIVED, Socket
from upgrade.engines.base import Container
from upgrade.errors import UpgradeError
from upgrade.host import Host

WAIT_S = 0.5
"""For connections that are being made when the door is closed: round trips of the clients."""
DRAIN_S = 0.2
"""For what closed connections have still to send: this is downtime, if there are such."""
DRAIN_PAUSE_S = 0.002
ATTEMPTS = 20
PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Queues:
    """What waits, at one moment."""

    waiting: Mapping[int, Mapping[int, int]]
    """How many connections wait at which port of which container (its number), if any do."""
    arriving: int
    """Connections that are half made."""


class Doors:
    """The sockets at which containers listen.

    Whom they belong to is found out once, while the containers run: to look at every descriptor takes its time.
    """

    def __init__(self, host: Host, containers: Sequence[Container]) -> None:
        self.host = host
        self.containers = containers
        tables = self._tables()
        self.listeners: dict[int, dict[int, int]] = {}
        """The ports by their sockets' inodes, by the container's number."""
        for number, container in enumerate(containers):
            held = sockets.inodes(host, cgroup.pids(host, container.cgroup))
            self.listeners[number] = {
                inode: each.port
                for inode, each in tables[_directory(container)]
                if each.state == LISTENING and inode in held
            }

    @property
    def ports(self) -> dict[int, tuple[int, ...]]:
        """The ports of the host at which containers listen, by their numbers."""
        return {
            number: tuple(sorted(set(self.listeners[number].values())))
            for number, container in enumerate(self.containers)
            if container.host_network
        }

    def look(self) -> Queues:
        """Look at what waits now."""
        waiting: dict[int, dict[int, int]] = {}
        arriving = 0
        tables = self._tables()
        for number, container in enumerate(self.containers):
            ports = set(self.listeners[number].values())
            for inode, each in tables[_directory(container)]:
                if each.state == LISTENING and each.queued and inode in self.listeners[number]:
                    waiting.setdefault(number, {})[each.port] = each.queued
                arriving += each.state == SYN_RECEIVED and each.port in ports
        return Queues(waiting, arriving)

    def wait(self) -> None:
        """Wait until all connections are accepted that were on their way, but not for long. The containers run."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            seen = self.look()
            if not seen.arriving and not seen.waiting:
                return
            time.sleep(PAUSE_S)

    def settle(self, freeze_timeout_s: float) -> int:
        """Thaw and freeze frozen containers until no connection waits; return how often that was needed.

        :raises UpgradeError: naming container and port, if the program does not accept them
        """
        waiting: Mapping[int, Mapping[int, int]] = {}
        for attempt in range(ATTEMPTS + 1):
            waiting = self.look().waiting
            if not waiting:
                return attempt
            if attempt < ATTEMPTS:
                names = [self.containers[number].cgroup for number in waiting]
                for name in names:
                    cgroup.thaw(self.host, name)
                time.sleep(PAUSE_S)
                cgroup.freeze(self.host, names, freeze_timeout_s)
        number, ports = next(iter(waiting.items()))
        raise UpgradeError(
            f"{sum(ports.values())} connections wait for accept(2) at port {', '.join(map(str, ports))}; "
            "CRIU cannot dump them, and the program does not accept them",
            subject=self.containers[number].name,
            hint="see why it does not",
        )

    def drain(self) -> int:
        """Wait until what programs had closed is sent, but not for long; return how many connections are not done."""
        deadline = time.monotonic() + DRAIN_S
        while left := self._unsent():
            if time.monotonic() > deadline:
                break
            time.sleep(DRAIN_PAUSE_S)
        return left

    def _unsent(self) -> int:
        """Count the connections that no process has, and that have more to send than their end."""
        ports: dict[str, set[int]] = {}
        for number, container in enumerate(self.containers):
            ports.setdefault(_directory(container), set()).update(self.listeners[number].values())
        return sum(
            inode == 0
            and each.state in (FIN_WAIT1, LAST_ACK, CLOSING)
            and each.unsent > 1
            and each.port in listened
            for directory, listened in ports.items()
            for inode, each in self._table(directory)
        )

    def _tables(self) -> dict[str, list[tuple[int, Socket]]]:
        directories = {_directory(container) for container in self.containers}
        return {directory: list(self._table(directory)) for directory in directories}

    def _table(self, directory: str) -> Iterator[tuple[int, Socket]]:
        return sockets.lines(self.host, directory, sockets.TCP_TABLES)


def _directory(container: Container) -> str:
    """Return where the tables of a container's network namespace are."""
    return "/proc/net" if container.host_network else f"/proc/{container.root_pid}/net"
