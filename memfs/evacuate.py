# SPDX-License-Identifier: MIT
"""Move pages into ranges of ZONE_MOVABLE memory by emptying the memory blocks in which they lie.

What is in a block that is taken offline the kernel migrates, whoever maps it: pages that fork(2) shares or that are
locked, too, which :mod:`memfs.gather` cannot move. It takes the frames from ZONE_MOVABLE first. The block comes back at
once. A process that touches a page meanwhile waits for one copy.

A block that holds memory of the kernel itself cannot be emptied; it is left alone. What else lies in a block moves
along, so that this is for what other ways have left. (Documentation/admin-guide/mm/memory-hotplug.rst)
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memfs import hotplug, room, sysfs
from memfs.pagemap import PAGE_BYTES
from memfs.ranges import Range
from memfs.residency import Frames
from memfs.room import Block

# include/uapi/linux/kernel-page-flags.h: slab, page tables, reserved. The kernel would find them as well, after it has
# written a dump of the page to its log.
_UNMOVABLE = np.uint64(1 << 7 | 1 << 26 | 1 << 32)


@dataclass(frozen=True, slots=True)
class Evacuated:
    """What was done."""

    emptied: int = 0
    """Memory blocks."""
    refused: int = 0
    """Memory blocks that the kernel could not empty."""
    longest_ns: int = 0
    """How long the kernel took for one at the most; a page is away for a small part of that."""
    duration_ns: int = 0


def blocks(spans: Sequence[Range], ours: Frames, root: Path = Path("/")) -> list[Block]:
    """Return the memory blocks outside of the ranges that hold pages of ``ours`` and may be emptied; most first.

    :param ours: the frames of the containers
    """
    size_pages = hotplug.block_bytes(root) // PAGE_BYTES
    here = {path for span in spans for _, path in hotplug.blocks(span, root)}
    found = []
    with (root / "proc/kpageflags").open("rb", buffering=0) as flags:
        for number in np.unique(np.flatnonzero(ours) // size_pages).tolist():
            path = root / hotplug.MEMORY / f"memory{number}"
            if path in here or not _is_ordinary(path):
                continue
            first = number * size_pages
            flags.seek(first * 8)
            some = np.frombuffer(flags.read(size_pages * 8), np.uint64)
            if not np.any(some & _UNMOVABLE):
                span = Range(first * PAGE_BYTES, size_pages * PAGE_BYTES)
                taken = int(np.count_nonzero(ours[first : first + size_pages]))
                found.append(Block(path, span, 0, taken))
    return sorted(found, key=lambda block: -block.ours)


def evacuate(found: Iterable[Block], wanted: int) -> Evacuated:
    """Empty blocks, one after another, until ``wanted`` pages have moved.

    While it runs one block is offline: :func:`restore` undoes that.

    :raises OSError: if a block does not come back
    """
    begun = time.monotonic_ns()
    moved = emptied = refused = longest = 0
    for block in found:
        if moved >= wanted:
            break
        started = time.monotonic_ns()
        try:
            if room.offline(block):
                emptied += 1
                moved += block.ours
            else:
                refused += 1
        finally:
            restore([block.path])
        longest = max(longest, time.monotonic_ns() - started)
    return Evacuated(emptied, refused, longest, time.monotonic_ns() - begun)


def restore(paths: Iterable[Path]) -> None:
    """Bring ordinary memory blocks online that are not: a killed run may have left one offline.

    :raises OSError: if the kernel refuses
    """
    for path in paths:
        if sysfs.read(path / "state") == "offline":
            sysfs.write(path / "state", "online_kernel")


def _is_ordinary(path: Path) -> bool:
    """Tell whether a block is online in a zone that is not movable."""
    zones = sysfs.read(path / "valid_zones").split()
    return sysfs.read(path / "state") == "online" and bool(zones) and zones[0] not in ("none", "Movable")
