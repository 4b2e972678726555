# SPDX-License-Identifier: MIT
"""The file system on range M: ext4 with DAX, so that what is written lies in the range itself.

There is no page cache in between: once ``write(2)`` has returned, the bytes are in memory that survives kexec.
No journal: nothing is ever recovered here that its checksum does not prove.
"""

import os
import subprocess
from pathlib import Path

LABEL = "seamless-upgrade"
MOUNT_OPTIONS = "dax=always,nodev,nosuid,noexec"

# fs/ext4/ext4.h: the superblock lies 1024 bytes into the device; s_magic and s_volume_name in it
_EXT4_SUPERBLOCK = 1024
_EXT4_MAGIC = (_EXT4_SUPERBLOCK + 0x38, b"\x53\xef")
_EXT4_LABEL = (_EXT4_SUPERBLOCK + 0x78, 16)


class ForeignData(Exception):
    """The range holds something that we did not put there."""


class StoreFailed(Exception):
    """mkfs, mount or umount failed; the text is theirs."""


def label(device: Path) -> str | None:
    """Return the label of the ext4 on ``device``; None if there is no ext4."""
    with device.open("rb") as f:
        head = f.read(4096)
    offset, magic = _EXT4_MAGIC
    if head[offset : offset + len(magic)] != magic:
        return None
    offset, length = _EXT4_LABEL
    return head[offset : offset + length].rstrip(b"\0").decode(errors="replace")


def is_blank(device: Path) -> bool:
    """Tell whether the first 128 KiB, where every file system and partition table begins, are zero."""
    with device.open("rb") as f:
        return not any(f.read(128 * 1024))


def refuse_foreign(device: Path) -> None:
    """Refuse a device that somebody else uses.

    :raises ForeignData: if it holds data that is not ours
    """
    if label(device) != LABEL and not is_blank(device):
        raise ForeignData(f"{device} holds data that seamless-upgrade did not write")


def make(device: Path) -> None:
    """Make an empty store.

    :raises ForeignData: if the device holds somebody else's data
    :raises StoreFailed: if mkfs fails
    """
    refuse_foreign(device)
    _call(
        "mkfs.ext4", "-q", "-F", "-L", LABEL, "-m", "0", "-b", "4096", "-O", "^has_journal", os.fspath(device)
    )


def mount(device: Path, where: Path, *, read_only: bool = False) -> None:
    """Mount a store with DAX; the kernel refuses if the range cannot do DAX."""
    where.mkdir(parents=True, exist_ok=True)
    options = MOUNT_OPTIONS + (",ro" if read_only else "")
    _call("mount", "-t", "ext4", "-o", options, os.fspath(device), os.fspath(where))
    if not read_only:
        where.chmod(0o700)  # what is stored here is the memory of programs


def unmount(where: Path) -> None:
    """Unmount a store and remove its mount point; nothing happens if none is mounted there."""
    if os.path.ismount(where):
        _call("umount", os.fspath(where))
        where.rmdir()


def wipe(device: Path) -> None:
    """Make a store unrecognisable: a session is restored once."""
    with device.open("r+b") as f:
        f.write(bytes(128 * 1024))
        f.flush()
        os.fsync(f.fileno())


def free_bytes(where: Path) -> int:
    """Return how much can still be written below ``where``."""
    state = os.statvfs(where)
    return state.f_bavail * state.f_frsize


def _call(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise StoreFailed(f"{command[0]}: {(done.stderr or done.stdout).strip()}")
