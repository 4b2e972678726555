# SPDX-License-Identifier: MIT
"""Terminals: CRIU wants both ends of a pseudo terminal, and the leader of its session, in the container.

criu/tty.c, ``tty_verify_active_pairs``, ``dump_verify_tty_sids`` and ``tty_verify_ctty``.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from upgrade.check.containers import devices, options
from upgrade.check.containers.options import DumpOptions
from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding
from upgrade.check.processes import Descriptor, Process, by_container
from upgrade.check.situation import Situation

REMEDY = "start it without a terminal, for example with setsid(1) and its streams on files or pipes"
SESSION, TERMINAL = 3, 4  # fields of /proc/PID/stat behind the name


@dataclass(frozen=True, slots=True)
class _Open:
    process: Process
    descriptor: Descriptor
    device: int
    """``st_rdev``."""


def terminals(situation: Situation) -> Iterator[Finding]:
    """Look at the terminals that are open."""
    found = (
        trouble
        for container, members in by_container(situation.processes)
        for trouble in _of_container(members, options.of(situation.host, container))
    )
    yield from tell(found, "terminals", "none, or all of them the containers' own")


def _of_container(members: Sequence[Process], chosen: DumpOptions) -> Iterator[Trouble]:
    terminals = [
        _Open(process, each, each.state.st_rdev)
        for process in members
        for each in process.descriptors
        if each.kind == stat.S_IFCHR and each.state is not None and devices.is_terminal(each.state.st_rdev)
    ]
    if chosen.shell_job:
        return
    yield from _halves(terminals, chosen)
    yield from _sessions(terminals, members)
    yield from _own_terminal(terminals)


def _halves(terminals: Sequence[_Open], chosen: DumpOptions) -> Iterator[Trouble]:
    masters = {index for each in terminals if (index := _master_index(each)) is not None}
    alone: dict[int, _Open] = {}
    for each in terminals:
        index = os.minor(each.device)
        if os.major(each.device) == devices.PTY_SLAVE and index not in masters:
            alone.setdefault(index, each)
    allowed = 1 if chosen.orphan_pts_master else 0
    if len(alone) <= allowed:
        return
    for each in list(alone.values())[allowed:]:
        yield Trouble(
            each.process,
            f"{each.descriptor.what} is the terminal {each.descriptor.link}, whose other end is outside",
            each.descriptor.source,
            "CRIU cannot dump one end of a pseudo terminal",
            REMEDY,
        )


def _master_index(each: _Open) -> int | None:
    """Return the number of the pseudo terminal that an open ``ptmx`` is the other end of."""
    is_ptmx = each.device == os.makedev(devices.TTY_AUX, devices.PTMX)
    shown = each.descriptor.field("tty-index")
    return int(shown) if is_ptmx and shown is not None else None


def _sessions(terminals: Sequence[_Open], members: Sequence[Process]) -> Iterator[Trouble]:
    """Look for tasks whose controlling terminal is that of a session from outside."""
    pids = {process.pid for process in members}
    for each in terminals:
        words = each.process.stat
        if not words or int(words[SESSION]) in pids or _decoded(int(words[TERMINAL])) != each.device:
            continue
        yield Trouble(
            each.process,
            f"{each.descriptor.what} is the terminal {each.descriptor.link} of session {words[SESSION]}, "
            "which is not in the container",
            each.descriptor.source,
            "CRIU cannot dump a terminal without the leader of its session",
            REMEDY,
        )


def _own_terminal(terminals: Sequence[_Open]) -> Iterator[Trouble]:
    """Look for ``/dev/tty`` in processes that do not have the pseudo terminal behind it open."""
    for each in terminals:
        if each.device != os.makedev(devices.TTY_AUX, devices.TTY_ITSELF):
            continue
        pseudo = (one for one in terminals if _is_pseudo(one.device))
        if not any(one.process.pid == each.process.pid for one in pseudo):
            yield Trouble(
                each.process,
                f"{each.descriptor.what} is {PurePath(each.descriptor.link)}",
                each.descriptor.source,
                "CRIU can dump it only if the process has the pseudo terminal behind it open, too",
                REMEDY,
            )


def _is_pseudo(device: int) -> bool:
    return os.major(device) == devices.PTY_SLAVE or device == os.makedev(devices.TTY_AUX, devices.PTMX)


def _decoded(number: int) -> int:
    """Return the device of ``tty_nr`` (proc_pid_stat(5))."""
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))


CHECKS = (Check("containers.terminals", "their terminals are their own", terminals),)
