# SPDX-License-Identifier: MIT
"""Page out page frames, whoever has them mapped: DAMON's action ``pageout`` on physical addresses.

``MADV_PAGEOUT`` leaves alone what more than one process maps (mm/madvise.c), as it does with all that fork(2) shares.
DAMON goes by frames and not by processes (mm/damon/paddr.c). Documentation/admin-guide/mm/damon/usage.rst has its
files in sysfs.
"""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memfs import calls, sysfs

ADMIN = "sys/kernel/mm/damon/admin/kdamonds"

# Frames are looked at once in this time; one that was used in between is left for the next look.
_LOOK_US = 2000
_LOOKS = 2
_PATIENCE_S = 5.0
_MOST = str((1 << 32) - 1)


def is_free(root: Path = Path("/")) -> bool:
    """Tell whether the kernel has DAMON and nobody uses it."""
    kernel = root / ADMIN
    return sysfs.read(kernel / "nr_kdamonds") == "0"


@contextmanager
def claimed(root: Path = Path("/")) -> Iterator[bool]:
    """Have DAMON to oneself while the block runs; yields whether that was possible."""
    if not is_free(root):
        yield False
        return
    kernel = root / ADMIN
    try:
        sysfs.write(kernel / "nr_kdamonds", "1")
        sysfs.write(kernel / "0/contexts/nr_contexts", "1")
        yield _prepare(kernel / "0/contexts/0")
    finally:
        release(root)


def release(root: Path = Path("/")) -> None:
    """Stop what :func:`claimed` began; nothing happens if there is nothing."""
    kernel = root / ADMIN
    if sysfs.read(kernel / "nr_kdamonds") != "1":
        return
    if sysfs.read(kernel / "0/state") == "on":
        sysfs.write(kernel / "0/state", "off")
    sysfs.write(kernel / "nr_kdamonds", "0")


def page_out(frames: calls.Extents, root: Path = Path("/")) -> int:
    """Page out runs of page frames, as far as the kernel can; :func:`claimed` must be in force.

    Returns when the first page may have gone (``CLOCK_MONOTONIC``, nanoseconds).

    :param frames: physical address and length of each run, in bytes
    :raises OSError: EBUSY if a part of the kernel uses DAMON (DAMON_RECLAIM, DAMON_LRU_SORT)
    """
    kdamond = root / ADMIN / "0"
    context = kdamond / "contexts/0"
    rows = frames.tolist()
    # regions are split as long as there are less than half of the most
    sysfs.write(context / "monitoring_attrs/nr_regions/max", str(max(10, len(rows))))
    regions = context / "targets/0/regions"
    sysfs.write(regions / "nr_regions", str(len(rows)))
    for number, (start, length) in enumerate(rows):
        sysfs.write(regions / f"{number}/start", str(start))
        sysfs.write(regions / f"{number}/end", str(start + length))
    total = sum(length for _, length in rows)
    filters = context / "schemes/0/filters"
    begun = time.monotonic_ns()
    if not _run(kdamond, total) and _only_in_use(filters):
        try:
            _run(kdamond, total)
        finally:
            sysfs.write(filters / "nr_filters", "0")
    return begun


def _only_in_use(filters: Path) -> bool:
    """Let just those be paged out that were used since the last look, which are left alone else.

    Return False if the kernel cannot.
    """
    sysfs.write(filters / "nr_filters", "1")
    try:
        sysfs.write(filters / "0/type", "young")
        sysfs.write(filters / "0/matching", "N")
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        sysfs.write(filters / "nr_filters", "0")  # no such filter: before Linux 6.10
        return False
    return True


def _prepare(context: Path) -> bool:
    if "paddr" not in sysfs.read(context / "avail_operations").split():
        return False
    sysfs.write(context / "operations", "paddr")
    for name, microseconds in (("sample_us", _LOOK_US // 2), ("aggr_us", _LOOK_US), ("update_us", 10**6)):
        sysfs.write(context / "monitoring_attrs/intervals" / name, str(microseconds))
    sysfs.write(context / "targets/nr_targets", "1")
    sysfs.write(context / "schemes/nr_schemes", "1")
    scheme = context / "schemes/0"
    sysfs.write(scheme / "action", "pageout")
    for name in ("sz", "nr_accesses", "age"):
        sysfs.write(scheme / f"access_pattern/{name}/max", str((1 << 64) - 1) if name == "sz" else _MOST)
    return True


def _run(kdamond: Path, total_bytes: int) -> bool:
    """Look at all frames; tell whether all were paged out."""
    sysfs.write(kdamond / "state", "on")
    try:
        return _wait(kdamond, total_bytes)
    finally:
        sysfs.write(kdamond / "state", "off")


def _wait(kdamond: Path, total_bytes: int) -> bool:
    """Wait until all was paged out, or looked at often enough; tell which."""
    stats = kdamond / "contexts/0/schemes/0/stats"
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if _is_updated(kdamond):
            tried, applied = (int(sysfs.read(stats / name) or 0) for name in ("sz_tried", "sz_applied"))
            if applied >= total_bytes or tried >= _LOOKS * total_bytes:
                return applied >= total_bytes
        time.sleep(_LOOK_US / 1e6)
    return False


def _is_updated(kdamond: Path) -> bool:
    """Have the figures brought up to date, which takes until the next look; False if there was none yet."""
    try:
        sysfs.write(kdamond / "state", "update_schemes_stats")
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.EBUSY):
            raise
        return False
    return True
