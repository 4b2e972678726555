# SPDX-License-Identifier: MIT
"""File systems at the jump: synced, and frozen so that nothing can be written any more.

FIFREEZE is stronger than a read-only mount and can be undone: it waits for writers, writes everything back and
leaves an empty journal, so that the new kernel's mount has nothing to recover.
"""

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from upgrade import linux
from upgrade.host import Host

# File systems whose source is no device file, and whose servers or pools have to be told what was written.
KEEP_DATA = ("9p", "ceph", "cifs", "fuse.", "glusterfs", "nfs", "smb3", "virtiofs", "zfs")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""

    device: str  # major:minor
    where: str
    kind: str
    source: str
    read_only: bool


def mounts(host: Host) -> list[Mount]:
    """Return all mounts, in the order in which they were made."""
    return parse(host.read("/proc/self/mountinfo"))


def parse(text: str) -> list[Mount]:
    """Return what a ``mountinfo`` file says."""
    return [_parse(line) for line in text.splitlines()]


def unescape(text: str) -> str:
    """Return a path as it is: in ``mountinfo`` some characters stand as octal numbers (fs/proc_namespace.c)."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def writable(host: Host, leave_out: Iterable[Path]) -> list[Mount]:
    """Return one mount of every file system on a block device that can be written, the newest first.

    The newest first because a file system on a loop device has to go before the one that its file lies on.
    """
    left_out = {str(path) for path in leave_out}
    devices = {m.device for m in mounts(host) if m.where in left_out}
    found: dict[str, Mount] = {}
    for mount in mounts(host):
        if mount.source.startswith("/dev/") and not mount.read_only and mount.device not in devices:
            found.setdefault(mount.device, mount)
    return list(reversed(found.values()))


def remote(host: Host) -> list[Mount]:
    """Return the writable file systems that are on no block device of ours but keep data all the same."""
    return [m for m in mounts(host) if m.kind.startswith(KEEP_DATA) and not m.read_only]


def freeze(mount: Mount) -> bool:
    """Freeze a file system; where it cannot be frozen, write it back and return False."""
    try:
        linux.freeze_filesystem(mount.where)
        return True
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EBUSY):
            raise
    linux.sync_filesystem(mount.where)
    return False


def thaw(where: str) -> None:
    """Thaw a file system; nothing happens if it is not frozen (EINVAL)."""
    try:
        linux.thaw_filesystem(where)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise


def _parse(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    _, _, device, _, where, *_ = left.split()
    kind, source, options = right.split(" ", 2)  # a source may be empty
    return Mount(device, unescape(where), kind, unescape(source), "ro" in options.split(","))
