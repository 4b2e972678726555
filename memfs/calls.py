# SPDX-License-Identifier: MIT
"""System calls about other processes' memory that Python's standard library lacks.

Scope: thin wrappers for x86-64 that raise OSError with the name of the call. No policy.
"""

import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memfs import libc
from memfs.pagemap import PAGE_BYTES

# arch/x86/entry/syscalls/syscall_64.tbl
SYS_SWAPON: Final = 167
SYS_SWAPOFF: Final = 168
SYS_PROCESS_MADVISE: Final = 440

# include/uapi/asm-generic/mman-common.h
MADV_PAGEOUT: Final = 21
MADV_COLLAPSE: Final = 25

# include/linux/swap.h
SWAP_FLAG_PREFER: Final = 0x8000
SWAP_HIGHEST: Final = 0x7FFF

# include/uapi/linux/uio.h
UIO_MAXIOV: Final = 1024

# include/uapi/linux/fs.h: _IOWR('f', 16, struct pm_scan_arg), and the categories of a page
PAGEMAP_SCAN: Final = 0xC0606610
PAGE_IS_FILE: Final = 1 << 2
PAGE_IS_PRESENT: Final = 1 << 3
PAGE_IS_SWAPPED: Final = 1 << 4
PAGE_IS_PFNZERO: Final = 1 << 5

_REGIONS = 4096  # of one PAGEMAP_SCAN: 96 KiB
_TOUCH_BYTES = 256 << 10  # of one read of /proc/PID/mem

Extents: TypeAlias = NDArray[np.uint64]
"""One row a run: its address and its length in bytes (``struct iovec``)."""

Regions: TypeAlias = NDArray[np.uint64]
"""One row a run: its first address, the address behind it, its categories (``struct page_region``)."""


def pagemap_scan(fd: int, start: int, end: int, *, all_of: int = 0, none_of: int = 0, any_of: int) -> Regions:
    """Return the runs of pages of the given categories; whole empty page tables are skipped (Linux 6.7).

    :param fd: of ``/proc/PID/pagemap``
    :raises OSError: ENOTTY before Linux 6.7
    """
    found: list[Regions] = []
    vec = np.empty((_REGIONS, 3), np.uint64)
    while start < end:
        argument = np.array(
            # size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, return
            [96, 0, start, end, 0, vec.ctypes.data, _REGIONS, 0, none_of, all_of | none_of, any_of, any_of],
            np.uint64,
        )
        count = fcntl.ioctl(fd, PAGEMAP_SCAN, argument.data.cast("B"))
        found.append(vec[:count].copy())
        start = int(argument[4])
    return np.concatenate(found) if found else np.empty((0, 3), np.uint64)


def process_madvise(pidfd: int, extents: Extents, advice: int) -> int:
    """Advise the kernel about runs of another process's memory; return how many bytes it refused.

    It refuses runs that are locked, that are of huge pages of hugetlbfs, or whose mapping is gone.

    :raises ProcessLookupError: if the process is gone
    """
    rows = np.ascontiguousarray(extents, np.uint64)
    ends = np.cumsum(rows[:, 1])
    refused = at = 0
    while at < len(rows):
        batch = rows[at : at + UIO_MAXIOV]
        before = int(ends[at - 1]) if at else 0
        try:
            done = libc.call(
                "process_madvise",
                SYS_PROCESS_MADVISE,
                ctypes.c_int(pidfd),
                ctypes.c_void_p(batch.ctypes.data),
                ctypes.c_size_t(len(batch)),
                ctypes.c_int(advice),
                ctypes.c_uint(0),
            )
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOMEM, errno.EAGAIN, errno.EBUSY):
                raise
            done = 0
        # it stops at the first run that it refuses
        reached = int(np.searchsorted(ends, np.uint64(before + done), side="right"))
        if reached < at + len(batch):
            refused += int(rows[reached, 1])
            reached += 1
        at = reached
    return refused


def touch(pid: int, addresses: NDArray[np.uint64]) -> int:
    """Read at each address of another process, ascending, which brings its page in; return how many could be read.

    Through ``/proc/PID/mem``, since process_vm_readv(2) pins pages, and the kernel copies a page that fork(2) shares
    before it is pinned ("mm/gup: trigger FAULT_FLAG_UNSHARE when R/O-pinning a possibly shared anonymous page",
    Linux 5.19).

    :raises ProcessLookupError: if the process is gone
    :raises FileNotFoundError: likewise
    """
    sink = bytearray(_TOUCH_BYTES)
    read = 0
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, length in extents(addresses).tolist():
            end = start + length
            while start < end:
                try:
                    done = os.preadv(fd, [memoryview(sink)[: end - start]], start)
                except OSError as e:
                    if e.errno not in (errno.EIO, errno.EFAULT):
                        raise
                    start += PAGE_BYTES  # this one cannot be read
                    continue
                if not done:
                    raise ProcessLookupError(errno.ESRCH, f"process {pid} has no memory any more")
                pages = -(-done // PAGE_BYTES)
                read += pages
                start += pages * PAGE_BYTES
    finally:
        os.close(fd)
    return read


def extents(addresses: NDArray[np.uint64]) -> Extents:
    """Return the runs that some pages form; the addresses ascend."""
    if not len(addresses):
        return np.empty((0, 2), np.uint64)
    breaks = np.flatnonzero(np.diff(addresses) != PAGE_BYTES) + 1
    firsts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([firsts, [len(addresses)]]))
    found = np.empty((len(firsts), 2), np.uint64)
    found[:, 0] = addresses[firsts]
    found[:, 1] = lengths * PAGE_BYTES
    return found


def swapon(device: Path, priority: int = SWAP_HIGHEST) -> None:
    """Let the kernel swap to ``device``."""
    flags = SWAP_FLAG_PREFER | priority
    libc.call("swapon", SYS_SWAPON, ctypes.c_char_p(os.fsencode(device)), ctypes.c_int(flags))


def swapoff(device: Path) -> None:
    """Bring back what was swapped to ``device`` and do not use it any more; EINVAL if it was not used."""
    libc.call("swapoff", SYS_SWAPOFF, ctypes.c_char_p(os.fsencode(device)))
