# SPDX-License-Identifier: MIT
"""Sockets of preserved tasks in the host's network namespace: what to lock and whom to nudge."""

from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Sockets:
    """Local ports of some tasks."""

    ports: tuple[int, ...]
    established: int


def of_pids(pids: Iterable[int]) -> Sockets:
    """Return the TCP and UDP ports of tasks; those that ended meanwhile have none."""
    ports: set[int] = set()
    established: set[tuple[object, ...]] = set()
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            ports.add(connection.laddr.port)
            if connection.status == psutil.CONN_ESTABLISHED:
                established.add((connection.laddr, connection.raddr))
    return Sockets(tuple(sorted(ports - {0})), len(established))
