# SPDX-License-Identifier: MIT
"""Namespaces in the container's own: CRIU can nest mount and network namespaces only (criu/namespaces.c)."""

import os
from collections.abc import Iterator, Sequence
from functools import partial

from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding
from upgrade.check.processes import Process, by_container
from upgrade.check.situation import Situation
from upgrade.host import Host

# In a container that has one itself they are fine
NESTABLE = {
    "mnt": "CRIU would have to mount all mounts of the host again, and cannot dump those",
    "net": "CRIU dumps it, but cannot restore it (criu/pstree.c: Can't restore sub-task in NS)",
}
NOT_NESTABLE = ("cgroup", "ipc", "pid", "time", "user", "uts")
REMEDY = "stop what made it (a sandbox, a container in the container, unshare), or leave the container out"


def namespaces(situation: Situation) -> Iterator[Finding]:
    """Compare the namespaces of each task with those of its container's first."""
    found = (
        trouble
        for _, members in by_container(situation.processes)
        for trouble in _of_container(situation.host, members)
    )
    yield from tell(found, "namespaces", "all tasks are in those of their container")


def _of_container(host: Host, members: Sequence[Process]) -> Iterator[Trouble]:
    root = next((p for p in members if p.pid == members[0].container.root_pid), members[0])
    own = _own(host)
    for process in members:
        told = partial(Trouble, process, remedy=REMEDY)
        for kind in NOT_NESTABLE:
            theirs = process.namespaces.get(kind)
            if theirs is None or theirs in (root.namespaces.get(kind), own.get(kind)):
                continue
            yield told(
                what=f"has a {kind} namespace of its own",
                source=f"{process.directory}/ns/{kind}",
                reason="CRIU cannot dump such a namespace within another",
            )
        yield from _nested(process, root, own)
        now, later = (process.namespaces.get(kind) for kind in ("time", "time_for_children"))
        if None not in (now, later) and now != later:  # one that ends just now has lost some of them
            yield told(
                what="has another time namespace for its children",
                source=f"{process.directory}/ns/time_for_children",
                reason="CRIU cannot dump a task that has left its time namespace by half",
            )
    yield from _root(root)


def _nested(process: Process, root: Process, own: dict[str, str]) -> Iterator[Trouble]:
    """Look for mount and network namespaces in a container that is in the host's own."""
    for kind, reason in NESTABLE.items():
        theirs, of_root = process.namespaces.get(kind), root.namespaces.get(kind)
        if theirs not in (None, of_root) and of_root == own.get(kind):
            yield Trouble(
                process,
                f"has a {kind} namespace of its own, while the container is in that of the host",
                f"{process.directory}/ns/{kind}",
                reason,
                REMEDY,
            )


def _root(root: Process) -> Iterator[Trouble]:
    numbers = root.status.get("NSpid", "").split()
    if not root.container.host_pids and numbers and numbers[-1] != "1":
        yield Trouble(
            root,
            f"is number {numbers[-1]} of its PID namespace, and not the first",
            f"{root.directory}/status",
            "CRIU cannot dump a PID namespace without its init",
            "name the container as a whole",
        )
    directory = next((each for each in root.links if each.what == "the root directory"), None)
    if root.namespaces.get("mnt") != _own(root.host).get("mnt") and directory and directory.link != "/":
        yield Trouble(
            root,
            f"has another root than its mount namespace: {directory.link}",
            directory.source,
            "CRIU cannot dump a container whose first task is in a chroot",
            "start it with pivot_root(2), as all engines do by default (runc: no --no-pivot)",
        )


def _own(host: Host) -> dict[str, str]:
    directory = "/proc/self/ns"
    return {kind: os.readlink(host.path(f"{directory}/{kind}")) for kind in host.list(directory)}


CHECKS = (Check("containers.namespaces", "CRIU knows how their namespaces are nested", namespaces),)
