# SPDX-License-Identifier: MIT
"""Take a prefix (memfs/prefix.py) to the start of range R. In the new kernel, so nothing heavy is imported."""

import mmap
import os
from pathlib import Path

_BLOCK_BYTES = 4096
_MAGIC = (1024, b"\xe2\xe1\xf5\xe0")  # EROFS_SUPER_MAGIC_V1 and where it lies
_AT_ONCE = 8 << 20


class NoPrefix(Exception):
    """The file is none, or does not fit the device."""


def install(path: Path, device: Path) -> int:
    """Write the file at ``path`` to the start of a block device, return its size in bytes.

    The superblock goes last: a device with half of it is no file system.

    :raises NoPrefix: if the file holds no EROFS superblock, no whole blocks, or more than the device; nothing has
        been written then
    :raises OSError: also EBUSY, if the device is in use
    """
    with path.open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size == 0 or size % _BLOCK_BYTES:
            raise NoPrefix(f"{path} has {size} bytes, not whole blocks")
        with mmap.mmap(f.fileno(), size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            at, magic = _MAGIC
            if view[at : at + len(magic)] != magic:
                raise NoPrefix(f"{path} holds no EROFS superblock")
            fd = _open(device)
            try:
                if os.lseek(fd, 0, os.SEEK_END) < size:
                    raise NoPrefix(f"{path} has {size} bytes, which is more than {device} has")
                _write(fd, view, _BLOCK_BYTES, size)
                os.fsync(fd)
                _write(fd, view, 0, _BLOCK_BYTES)
                os.fsync(fd)
            finally:
                os.close(fd)
    return size


def blank(device: Path) -> None:
    """Remove the devdax info block from a range that is an extra device: zeroes to its first two blocks."""
    fd = _open(device)
    try:
        _write(fd, memoryview(bytes(2 * _BLOCK_BYTES)), 0, 2 * _BLOCK_BYTES)
        os.fsync(fd)
    finally:
        os.close(fd)


def _open(device: Path) -> int:
    # O_EXCL: the kernel refuses a device that is mounted
    return os.open(device, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)


def _write(fd: int, data: memoryview, start: int, end: int) -> None:
    while start < end:
        # an error must leave no view, or its mapping could not be closed
        with data[start : min(start + _AT_ONCE, end)] as some:
            start += os.pwrite(fd, some, start)
