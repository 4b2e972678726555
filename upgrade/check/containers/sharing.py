# SPDX-License-Identifier: MIT
"""Processes that share what only threads usually share: CRIU knows that of descriptors alone.

criu/cr-dump.c, ``dump_task_kobj_ids``.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cmp_to_key, partial
from itertools import pairwise
from pathlib import Path

from upgrade import linux
from upgrade.check.containers.trouble import Trouble, lasts, tell
from upgrade.check.model import Check, Finding
from upgrade.check.processes import Process, by_container
from upgrade.check.situation import Situation

THINGS = {
    linux.KCMP_VM: "their memory (CLONE_VM)",
    linux.KCMP_FS: "their root and working directory (CLONE_FS)",
    linux.KCMP_SIGHAND: "their signal handlers (CLONE_SIGHAND)",
}
Compare = Callable[[int, int, int], int]


def sharing(situation: Situation) -> Iterator[Finding]:
    """Compare the processes of each container."""
    processes = situation.processes
    groups = by_container(processes) if situation.host.root == Path("/") else ()
    compare = linux.comparer()
    found = (trouble for _, members in groups for trouble in _of_container(members, compare))
    yield from tell(found, "processes", "none share memory, directories or signal handlers with each other")


def _of_container(members: Sequence[Process], compare: Compare) -> Iterator[Trouble]:
    by_pid = {process.pid: process for process in members}
    for kind, thing in THINGS.items():
        for one, other in shared(list(by_pid), kind, compare):
            # who calls vfork(2) shares everything until the child has called execve(2)
            if lasts(partial(_equal, compare, kind, one, other)):
                yield Trouble(
                    by_pid[other],
                    f"shares with {by_pid[one]} {thing}",
                    f"/proc/{other}",
                    "CRIU cannot dump processes that share this without being threads of one process",
                    "leave the container out, or stop what starts such processes",
                )
    yield from _descriptors(by_pid, compare)


def _descriptors(by_pid: dict[int, Process], compare: Compare) -> Iterator[Trouble]:
    """Look for shared descriptors: CRIU takes them between parent and child only."""
    for one, other in shared(list(by_pid), linux.KCMP_FILES, compare):
        related = _parent(by_pid[one]) == other or _parent(by_pid[other]) == one
        if not related and lasts(partial(_equal, compare, linux.KCMP_FILES, one, other)):
            yield Trouble(
                by_pid[other],
                f"shares with {by_pid[one]} their descriptors (CLONE_FILES)",
                f"/proc/{other}",
                "CRIU can dump shared descriptors of a parent and its child only",
                "leave the container out, or stop what starts such processes",
            )


def shared(pids: Sequence[int], kind: int, compare: Compare) -> Iterator[tuple[int, int]]:
    """Yield pairs of processes that share a thing. The kernel orders them, so few have to be compared."""
    try:
        ordered = sorted(pids, key=cmp_to_key(partial(compare, kind)))
    except OSError:  # one has ended; then this is not the moment of a dump anyway
        return
    for one, other in pairwise(ordered):
        if _equal(compare, kind, one, other):
            yield min(one, other), max(one, other)


def _equal(compare: Compare, kind: int, one: int, other: int) -> bool:
    try:
        return compare(kind, one, other) == 0
    except OSError:
        return False


def _parent(process: Process) -> int:
    return int(process.status.get("PPid", "0"))


CHECKS = (Check("containers.sharing", "their processes share nothing that only threads may", sharing),)
