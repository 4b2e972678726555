# SPDX-License-Identifier: MIT
"""Pipes: CRIU refuses those in packet mode, and makes both ends anew, also if one of them was not the container's."""

import os
import stat
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress

from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding, Status
from upgrade.check.processes import Descriptor, Process, by_container
from upgrade.check.situation import Situation
from upgrade.host import Host

PIPE = "pipe:["
STANDARD = range(3)


def pipes(situation: Situation) -> Iterator[Finding]:
    """Look at every pipe."""
    found = (
        trouble
        for _, members in by_container(situation.processes)
        for trouble in (*_in_packets(members), *_halves(situation.host, members))
    )
    yield from tell(found, "pipes", "none in packet mode, and both ends of each in one container")


def _in_packets(members: Sequence[Process]) -> Iterator[Trouble]:
    for process, each in _of(members):
        if each.flags & os.O_DIRECT:
            yield Trouble(
                process,
                f"{each.what} is a pipe in packet mode (O_DIRECT)",
                each.source,
                "CRIU cannot dump pipes in packet mode",
                "stop what uses it (for the time of the upgrade), or leave the container out",
            )


def _halves(host: Host, members: Sequence[Process]) -> Iterator[Trouble]:
    """Look for pipes of which the container has one end, and somebody outside the other."""
    ends: dict[str, dict[int, tuple[Process, Descriptor]]] = {}
    for process, each in _of(members):
        inherited = process.container.data.get("external_descriptors") or []
        if each.number in STANDARD and each.link in inherited:
            continue  # the engine gives it new ones
        ends.setdefault(each.link, {}).setdefault(each.flags & os.O_ACCMODE, (process, each))
    halves = {
        link: one
        for link, modes in ends.items()
        if len(modes) == 1 and os.O_RDWR not in modes
        for one in modes.values()
    }
    if not halves:
        return
    outside = _held_outside(host, {process.pid for process in members}, halves.keys())
    for link, (process, each) in halves.items():
        if link in outside:
            yield Trouble(
                process,
                f"{each.what} is one end of {link}, {outside[link]} has the other",
                each.source,
                "after the upgrade nobody is at the other end: writing gives EPIPE, reading the end of the file",
                "connect it with a file, or with the journal through a socket that the program opens again",
                Status.WARN,
            )


def _of(members: Sequence[Process]) -> Iterator[tuple[Process, Descriptor]]:
    for process in members:
        for each in process.descriptors:
            if each.link.startswith(PIPE) and each.kind in (0, stat.S_IFIFO):
                yield process, each


def _held_outside(host: Host, inside: set[int], links: Set[str]) -> dict[str, str]:
    """Return for each pipe that somebody else has open who that is."""
    found: dict[str, str] = {}
    for pid in host.pids():
        if pid in inside:
            continue
        for name in host.list(f"/proc/{pid}/fd"):
            with suppress(OSError):  # it is closed
                link = os.readlink(host.path(f"/proc/{pid}/fd/{name}"))
                if link in links:
                    found.setdefault(link, f"process {pid} ({host.read_or(f'/proc/{pid}/comm', '?')})")
    return found


CHECKS = (Check("containers.pipes", "CRIU can dump their pipes", pipes),)
