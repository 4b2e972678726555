# SPDX-License-Identifier: MIT
"""The mounts of containers with a mount namespace: which file systems CRIU can mount again (criu/mount.c)."""

import os
from collections.abc import Iterator, Sequence
from functools import partial

from upgrade.check.containers import options
from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding, Status
from upgrade.check.mounts import Mount, MountTable, below
from upgrade.check.processes import Process, by_container
from upgrade.check.situation import Situation
from upgrade.host import Host

# criu/filesystems.c, fstypes[]: what CRIU mounts anew. btrfs is named there, but only for comparing
KNOWN = frozenset(
    {
        "proc",
        "sysfs",
        "devtmpfs",
        "binfmt_misc",
        "tmpfs",
        "devpts",
        "simfs",
        "pstore",
        "mqueue",
        "securityfs",
        "fusectl",
        "debugfs",
        "tracefs",
        "cgroup",
        "cgroup2",
        "aufs",
        "fuse",
        "overlay",
        "autofs",
    }
)
MUST_BE_EMPTY = ("mqueue", "pstore")
CGROUPS = ("cgroup", "cgroup2")
"""In a namespace of cgroups their root looks like a part from outside, which CRIU knows (``cgroup_parse``)."""
ALWAYS_REFUSED = ("fuse",)
REMEDY = "mount it as a volume of the container, so that the engine knows of it, or unmount it"
TMPFS_BYTES = 16 << 20
"""What makes a difference: gzip takes about a second for it."""


def mounts(situation: Situation) -> Iterator[Finding]:
    """Look at every mount."""
    found = (
        trouble
        for container, members in by_container(situation.processes)
        for trouble in _of_container(
            situation.host, members, options.of(situation.host, container).external_mounts
        )
    )
    yield from tell(found, "mounts", "CRIU can mount all of them again")


def tmpfs(situation: Situation) -> Iterator[Finding]:
    """Add up what is in file systems of memory."""
    found = (
        trouble
        for container, members in by_container(situation.processes)
        for trouble in _tmpfs(situation.host, members, options.of(situation.host, container).external_mounts)
    )
    yield from tell(found, "tmpfs", f"no container has more than {TMPFS_BYTES >> 20} MiB in it")


def _namespaces(host: Host, members: Sequence[Process]) -> Iterator[Process]:
    """Yield one process of each mount namespace that is not the host's."""
    own = os.readlink(host.path("/proc/self/ns/mnt"))
    first: dict[str, Process] = {}
    for process in sorted(members, key=lambda p: p.pid != p.container.root_pid):
        space = process.namespaces.get("mnt", own)
        if space != own:
            first.setdefault(space, process)
    yield from first.values()


def _of_container(host: Host, members: Sequence[Process], external: frozenset[str]) -> Iterator[Trouble]:
    for process in _namespaces(host, members):
        is_root = process.pid == process.container.root_pid
        for mount in process.mounts:
            refused = refusal(mount, process.mounts, external if is_root else frozenset())
            if (
                refused is None
                and mount.kind in MUST_BE_EMPTY
                and not _outside(mount, process.mounts, external)
            ):
                held = host.list(f"{process.top}{mount.point}")
                refused = (
                    f"holds {', '.join(held[:3])}, and CRIU can dump {mount.kind} only while it is empty"
                    if held
                    else None
                )
            if refused is not None:
                yield Trouble(
                    process,
                    f"{mount.point} ({mount.kind}) {refused}",
                    f"{process.directory}/mountinfo",
                    "CRIU cannot mount it again",
                    REMEDY,
                )


def refusal(mount: Mount, table: MountTable, external: frozenset[str]) -> str | None:
    """Return why CRIU refuses a mount, or None (criu/mount.c, ``validate_mounts`` and ``dump_one_fs``)."""
    points = [child.point for child in table.children(mount)]
    twice = next((point for point in points if points.count(point) > 1), None)
    if twice is not None:
        return f"has two mounts on {twice}, one over the other"
    if _outside(mount, table, external):
        return None
    kind = mount.kind.partition(".")[0]  # fuse.sshfs
    if mount.whole and kind not in KNOWN:
        return "is mounted from within the container, and is of a kind that CRIU does not know"
    if kind in ALWAYS_REFUSED:
        return "is mounted from within the container; CRIU cannot dump FUSE"
    if kind in CGROUPS:
        return None
    if not mount.whole and not any(other.whole and other.device == mount.device for other in table):
        return "shows a part of a file system of which the container has nothing else"
    return None


def _outside(mount: Mount, table: MountTable, external: frozenset[str]) -> bool:
    """Tell whether CRIU does not have to mount it: the engine does, or it is a part of the root or of such a mount."""
    given = [other for other in table if other.point in external or other is table.top]
    return any(other.device == mount.device and below(mount.root, other.root) for other in given)


def _tmpfs(host: Host, members: Sequence[Process], external: frozenset[str]) -> Iterator[Trouble]:
    for process in _namespaces(host, members):
        told = partial(Trouble, process, source=f"{process.directory}/mountinfo", status=Status.WARN)
        seen: set[str] = set()
        for mount in process.mounts:
            if mount.kind != "tmpfs" or mount.device in seen or _outside(mount, process.mounts, external):
                continue
            seen.add(mount.device)
            try:
                state = os.statvfs(host.path(f"{process.top}{mount.point}"))
            except OSError:  # hidden by another mount
                continue
            used = (state.f_blocks - state.f_bfree) * state.f_frsize
            if used > TMPFS_BYTES:
                yield told(
                    what=f"{mount.point} (tmpfs) holds {used >> 20} MiB",
                    reason="CRIU packs it with tar and gzip while the container stands still: about a second for each "
                    f"{TMPFS_BYTES >> 20} MiB, and the range that survives has to have room for it",
                    remedy="mount a directory of the host there",
                )


CHECKS = (
    Check("containers.mounts", "CRIU can mount their file systems again", mounts),
    Check("containers.tmpfs", "their tmpfs are small", tmpfs),
)
