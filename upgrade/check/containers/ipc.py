# SPDX-License-Identifier: MIT
"""System V IPC in the host's IPC namespace: it belongs to nobody, so CRIU dumps nothing of it."""

import os
from collections.abc import Iterator, Sequence

from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding, Status
from upgrade.check.processes import Process, by_container
from upgrade.check.situation import Situation
from upgrade.host import Host

SEGMENT = "/SYSV"
REMEDY = "have it use shared memory of POSIX, or run it in a container with an IPC namespace"
# proc_sysvipc_*(5): the columns that name processes
WHOSE = {"msg": ("message queue", "msqid", ("lspid", "lrpid")), "shm": ("segment", "shmid", ("cpid", "lpid"))}


def ipc(situation: Situation) -> Iterator[Finding]:
    """Look for what containers have in the host's IPC namespace."""
    own = os.readlink(situation.host.path("/proc/self/ns/ipc"))
    found = (
        trouble
        for _, members in by_container(situation.processes)
        for trouble in _of_container(situation.host, [p for p in members if p.namespaces.get("ipc") == own])
    )
    yield from tell(found, "System V IPC", "none in the host's IPC namespace")


def _of_container(host: Host, members: Sequence[Process]) -> Iterator[Trouble]:
    mapped = False
    for process in members:
        for each in process.mappings:
            if each.name.startswith(SEGMENT):
                mapped = True
                yield Trouble(
                    process,
                    f"has a System V segment of the host mapped at {each.span.partition('-')[0]}",
                    f"{process.directory}/maps",
                    "CRIU can dump System V shared memory only together with an IPC namespace",
                    REMEDY,
                )
    by_pid = {process.pid: process for process in members}
    for kind, (what, number, columns) in WHOSE.items():
        if kind == "shm" and mapped:
            continue
        yield from _left(host, by_pid, kind, what, number, columns)


def _left(
    host: Host, by_pid: dict[int, Process], kind: str, what: str, number: str, columns: Sequence[str]
) -> Iterator[Trouble]:
    """Look for objects that a process has used and that end with this kernel."""
    source = f"/proc/sysvipc/{kind}"
    head, *rows = [line.split() for line in host.read_or(source, "").splitlines()] or [[]]
    for row in rows:
        fields = dict(zip(head, row, strict=False))
        users = [by_pid[int(fields[c])] for c in columns if int(fields.get(c, "0")) in by_pid]
        if users:
            yield Trouble(
                users[0],
                f"uses the System V {what} {fields[number]} of the host",
                source,
                "it is not dumped, and gone in the new kernel",
                REMEDY,
                Status.WARN,
            )


CHECKS = (Check("containers.ipc", "they keep nothing in the host's System V IPC", ipc),)
