# SPDX-License-Identifier: MIT
"""Room in a range that the kernel uses as ordinary memory (ZONE_MOVABLE).

After some days of uptime such a range is full of page cache. A memory block that is taken offline and online again
is empty: the kernel has moved what lay in it elsewhere, where it takes the place of the oldest cache. All blocks are
offline before the first comes back, or each would be filled with what the next one had. Dropping the whole host's
cache is the second way.
"""

import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memfs import hotplug, sysfs
from memfs.pagemap import PAGE_BYTES
from memfs.ranges import Range
from memfs.residency import Frames

# a block is mostly empty after its first migration, or a page is pinned and it would take for ever
OFFLINE_S = 10.0
# left free for allocations that go on meanwhile, and for the zone's watermarks
SPARE = 1 / 64

# include/uapi/linux/kernel-page-flags.h
_KPF_BUDDY = np.uint64(1 << 10)


@dataclass(frozen=True, slots=True)
class Block:
    """A memory block: its directory in sysfs and what lies in it, in pages."""

    path: Path
    span: Range
    free: int
    ours: int
    """Pages of the containers."""

    @property
    def others(self) -> int:
        """Return how many pages are neither free nor the containers'."""
        return self.span.size_bytes // PAGE_BYTES - self.free - self.ours


@dataclass(frozen=True, slots=True)
class Room:
    """What was done to make room; sizes in bytes."""

    free_before: int
    free_after: int
    emptied: int = 0
    """Memory blocks."""
    refused: int = 0
    """Memory blocks that could not be emptied."""
    dropped_cache: bool = False
    duration_ns: int = 0


def blocks(spans: Sequence[Range], ours: Frames, root: Path = Path("/")) -> list[Block]:
    """Return the memory blocks of ranges that are online and movable, in the order of their addresses."""
    found = []
    with (root / "proc/kpageflags").open("rb", buffering=0) as flags:
        for span in spans:
            for block, path in hotplug.blocks(span, root):
                if sysfs.read(path / "valid_zones") != "Movable" or sysfs.read(path / "state") != "online":
                    continue
                first, pages = block.start_bytes // PAGE_BYTES, block.size_bytes // PAGE_BYTES
                flags.seek(first * 8)
                some = np.frombuffer(flags.read(pages * 8), np.uint64)
                free = int(np.count_nonzero(some & _KPF_BUDDY))
                taken = int(np.count_nonzero(ours[first : first + pages]))
                found.append(Block(path, block, free, taken))
    return found


def free_bytes(blocks: Sequence[Block]) -> int:
    """Return how much of some blocks is free."""
    return sum(block.free for block in blocks) * PAGE_BYTES


def make(spans: Sequence[Range], needed_bytes: int, ours: Frames, root: Path = Path("/")) -> Room:
    """Make room in ranges, for ``needed_bytes`` and some to spare; do no more than is needed.

    While it runs memory blocks are offline: :func:`restore` undoes that.

    :param ours: the frames that should stay where they are; a block with many of them comes last
    """
    begun = time.monotonic_ns()
    before = blocks(spans, ours, root)
    free_before = free_bytes(before)
    needed = needed_bytes + int(SPARE * sum(block.span.size_bytes for block in before))
    emptied: list[Block] = []
    refused = 0
    try:
        free = free_before
        for block in sorted(before, key=lambda block: block.ours - block.others):
            # what is moved out of a block and belongs here must find a place again
            if free >= needed or block.others <= block.ours:
                break
            if offline(block):
                emptied.append(block)
                free += block.others * PAGE_BYTES
            else:
                refused += 1
    finally:
        _bring_online(block.path for block in emptied)
    free = free_bytes(blocks(spans, ours, root))
    dropped = free < needed and any(block.others for block in before)
    if dropped:
        _drop_cache(root)
        free = free_bytes(blocks(spans, ours, root))
    return Room(free_before, free, len(emptied), refused, dropped, time.monotonic_ns() - begun)


def drop(spans: Sequence[Range], needed_bytes: int, ours: Frames, root: Path = Path("/")) -> bool:
    """Give up the host's page cache unless so much of some ranges is free; tell whether that was done."""
    if free_bytes(blocks(spans, ours, root)) >= needed_bytes:
        return False
    _drop_cache(root)
    return True


def _drop_cache(root: Path) -> None:
    (root / "proc/sys/vm/drop_caches").write_text("1")


def restore(spans: Sequence[Range], root: Path = Path("/")) -> None:
    """Bring every memory block of ranges online that is not: a killed run may have left one offline."""
    _bring_online(path for span in spans for _, path in hotplug.blocks(span, root))


def _bring_online(paths: Iterable[Path]) -> None:
    refused = hotplug.bring_blocks_online(paths)
    if refused is not None:
        raise refused


def offline(block: Block) -> bool:
    """Take a block offline, which empties it; False if the kernel could not, it is then as it was."""
    # the kernel tries until it is done or a signal comes: in a process of its own, that can be killed
    command = ["sh", "-c", 'echo offline > "$0/state"', str(block.path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=OFFLINE_S)
    except subprocess.TimeoutExpired:
        return sysfs.read(block.path / "state") == "offline"
    return done.returncode == 0
