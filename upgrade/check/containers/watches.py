# SPDX-License-Identifier: MIT
"""inotify and fanotify: CRIU has to find a path for everything that is watched (criu/fsnotify.c, criu/irmap.c)."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from upgrade import linux
from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding
from upgrade.check.mounts import Mount
from upgrade.check.processes import Descriptor, Process, by_container
from upgrade.check.situation import Situation
from upgrade.host import Host

KINDS = ("anon_inode:inotify", "anon_inode:[fanotify]")
# Where CRIU looks for what it cannot open by its handle (criu/irmap.c, hints[])
HINTS = (
    "/etc",
    "/var/spool",
    "/var/log",
    "/usr/share/dbus-1/services",
    "/usr/share/dbus-1/system-services",
    "/var/lib/polkit-1/localauthority",
    "/usr/share/polkit-1/actions",
    "/lib/udev",
)
WITHOUT_LASTING_NUMBERS = ("tmpfs", "devtmpfs")
_FIELD = re.compile(r"([\w-]+):\s*([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class _Watch:
    inode: int
    device: str
    """``major:minor``, as in ``mountinfo``."""
    kind: int
    handle: bytes | None
    """None if its file system has no handles."""


def watches(situation: Situation) -> Iterator[Finding]:
    """Look at all that is watched."""
    found = (
        trouble
        for _, members in by_container(situation.processes)
        for trouble in _of_container(situation.host, members)
    )
    yield from tell(found, "inotify and fanotify", "CRIU finds all that they watch")


def _of_container(host: Host, members: Sequence[Process]) -> Iterator[Trouble]:
    hinted: set[tuple[int, int]] | None = None
    for process in members:
        for each in process.descriptors:
            if each.link not in KINDS:
                continue
            for watch in _watches(each):
                if _has_path(host, process, watch):
                    continue
                if watch.handle is not None:
                    hinted = _hinted(host, process) if hinted is None else hinted
                    if (_device(watch.device), watch.inode) in hinted:
                        continue
                yield _trouble(process, each, watch)


def _trouble(process: Process, each: Descriptor, watch: _Watch) -> Trouble:
    mount = next((m for m in process.mounts if m.device == watch.device), None)
    where = (
        f"on {mount.point} ({mount.kind})"
        if mount
        else f"on device {watch.device}, which is not mounted in it"
    )
    return Trouble(
        process,
        f"{each.what} ({each.link.removeprefix('anon_inode:').strip('[]')}) watches inode {watch.inode} {where}",
        each.source,
        "CRIU finds no path for what is watched: its file system has no handles for that, or it has no name any more",
        "have the program watch something on a volume, or turn the watching off; it is often to notice changes of a "
        "configuration",
    )


def _watches(each: Descriptor) -> Iterator[_Watch]:
    for name, value in each.lines:
        if name not in ("inotify wd", "fanotify ino"):
            continue
        fields = dict(_FIELD.findall(f"{name.split()[1]}:{value}"))
        device = int(fields["sdev"], 16)
        handle = bytes.fromhex(fields["f_handle"]) if "f_handle" in fields else None
        yield _Watch(
            int(fields["ino"], 16),
            f"{device >> 20}:{device & 0xFFFFF}",
            int(fields.get("fhandle-type", "0"), 16),
            handle,
        )


def _has_path(host: Host, process: Process, watch: _Watch) -> bool:
    """Tell whether the handle can be opened, and, where CRIU needs that, has a name."""
    opened: list[Mount] = []
    for mount in process.mounts if watch.handle is not None else ():
        if mount.device != watch.device:
            continue
        link = _opened(host, process, mount, watch)
        if link is None:
            continue
        opened.append(mount)
        try:
            if os.stat(host.path(f"{process.top}{link}")).st_ino == watch.inode:
                return True
        except OSError:
            continue
    return bool(opened) and opened[0].kind not in WITHOUT_LASTING_NUMBERS


def _opened(host: Host, process: Process, mount: Mount, watch: _Watch) -> str | None:
    """Return the name of what is watched, seen through a mount; None if it cannot be opened there."""
    try:
        at = os.open(host.path(f"{process.top}{mount.point}"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # a file, or hidden by another mount
        return None
    try:
        found = linux.open_by_handle(at, watch.kind, watch.handle or b"")
    except OSError:
        return None
    finally:
        os.close(at)
    try:
        return os.readlink(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


def _hinted(host: Host, process: Process) -> set[tuple[int, int]]:
    """Return device and inode of everything below the directories that CRIU searches."""
    top = host.path(process.top)
    found = set()
    for hint in HINTS:
        for directory, _, names in os.walk(top / hint.lstrip("/")):
            for name in (".", *names):
                try:
                    state = os.lstat(Path(directory) / name)
                except OSError:
                    continue
                found.add((state.st_dev, state.st_ino))
    return found


def _device(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major), int(minor))


CHECKS = (Check("containers.watches", "CRIU finds what they watch", watches),)
