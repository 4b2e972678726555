# SPDX-License-Identifier: MIT
"""Files that are open, mapped, or a task's directories: CRIU opens them again by their names.

criu/files-reg.c, ``dump_one_reg_file`` and ``check_path_remap``.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from functools import partial

from upgrade.check.containers import devices, options
from upgrade.check.containers.options import DumpOptions
from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding
from upgrade.check.mounts import Mount, MountTable
from upgrade.check.processes import File, Process, by_container
from upgrade.check.situation import Situation

BLOCK_BYTES = 512  # what st_blocks counts
NAMED = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)
# Their files have no contents that CRIU would have to keep
VIRTUAL = ("proc", "devpts")


def files(situation: Situation) -> Iterator[Finding]:
    """Look at every file that has, or had, a name."""
    found = (
        trouble
        for container, members in by_container(situation.processes)
        for trouble in _of_container(members, options.of(situation.host, container))
    )
    yield from tell(
        found, "open files", "all can be found again by their names, or are small enough to be copied"
    )


def _of_container(members: Sequence[Process], chosen: DumpOptions) -> Iterator[Trouble]:
    seen: set[tuple[str, int, int, str]] = set()
    for process in members:
        for each in (*process.descriptors, *process.links, *process.mapped):
            if not _looked_at(each) or each.state is None:
                continue
            key = (process.namespaces.get("mnt", ""), each.state.st_dev, each.state.st_ino, each.link)
            if key not in seen:
                seen.add(key)
                yield from _of_file(process, each, chosen, members)


def _looked_at(each: File) -> bool:
    if not each.is_named or each.kind not in NAMED:
        return False
    if each.kind == stat.S_IFCHR:
        return each.state is not None and devices.is_known(each.state.st_rdev)
    return True


def _of_file(
    process: Process, each: File, chosen: DumpOptions, members: Sequence[Process]
) -> Iterator[Trouble]:
    told = partial(Trouble, process, source=each.source)
    state, mount, table = each.state, *_mount(each, process, members)
    if state is None or each.mount is None:
        return
    name = f"{each.what} ({each.link})"
    if mount is None or table is None:
        if not each.is_memory:
            yield told(
                what=f"{name} lies on a mount that the container does not have",
                reason="CRIU cannot dump files of mounts that it does not find in the container: opened before the "
                "container got its root, on a file system unmounted lazily, or memory of a kind that it does not know",
                remedy="have the program open it inside, for example write to a file or pipe of the container",
            )
    elif table.hidden(mount):
        yield told(
            what=f"{name} lies on {mount.point}, over which something else is mounted",
            reason="CRIU cannot dump open files of mounts that others hide",
            remedy=f"unmount what was mounted over {mount.point} later, or restart the container",
        )
    elif mount.kind not in VIRTUAL:
        yield from _by_name(process, each, state, mount, chosen)


def _mount(
    each: File, process: Process, members: Sequence[Process]
) -> tuple[Mount | None, MountTable | None]:
    """Return the mount of a file, in the task's own namespace or that of another task of the container."""
    for table in dict.fromkeys(one.mounts for one in (process, *members)):
        if each.mount is not None and each.mount in table.mounts:
            return table.mounts[each.mount], table
    return None, None


def _by_name(
    process: Process, each: File, state: os.stat_result, mount: Mount, chosen: DumpOptions
) -> Iterator[Trouble]:
    told = partial(Trouble, process, source=each.source)
    name = f"{each.what} ({each.link})"
    if state.st_nlink == 0:
        size = state.st_blocks * BLOCK_BYTES
        if size > chosen.ghost_limit:
            yield told(
                what=f"{name} is deleted and has {size / (1 << 20):.1f} MiB",
                reason=f"CRIU copies deleted files into its images, here up to {chosen.ghost_limit >> 20} MiB each",
                remedy="restart the program if an update replaced its files, or have it close the file",
            )
        return
    try:
        there = os.stat(
            process.host.path(process.top + each.link), follow_symlinks=not stat.S_ISLNK(state.st_mode)
        )
    except FileNotFoundError:
        yield from _without_name(told, name, mount, chosen)
        return
    except OSError:  # CRIU will say; a name too long, a directory without access
        return
    if (there.st_dev, there.st_ino) != (state.st_dev, state.st_ino):
        yield told(
            what=f"{name} is not what is at that path now",
            reason="CRIU would open another file there: something was mounted over it, or its name was given away",
            remedy="have the program open the file again, or restart it",
        )


def _without_name(
    told: "partial[Trouble]", name: str, mount: Mount, chosen: DumpOptions
) -> Iterator[Trouble]:
    if not chosen.link_remap:
        yield told(
            what=f"{name} has lost the name it was opened by, but has others",
            reason="CRIU would have to make a link for it, which this engine does not ask for",
            remedy="have the program open the file again, or restart it",
        )
    elif "ro" in mount.options:
        yield told(
            what=f"{name} has lost the name it was opened by, on a file system that is read-only",
            reason="CRIU has to make a link for it",
            remedy=f"mount -o remount,rw {mount.point}, or restart the program",
        )


CHECKS = (Check("containers.files", "their files can be found again", files),)
