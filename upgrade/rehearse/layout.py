# SPDX-License-Identifier: MIT
"""Where a guest's memory lies, and which parts survive a change of kernel.

::

    0            2 GiB      4 GiB      + store    + gap     + frames
    | ordinary   |   PCI    | M: store | ordinary | R: frames | ordinary ... |

R begins a little before a memory block: only whole blocks come online, and in what lies before them the frame map
is written.

Ranges must not touch each other: the kernel merges neighbours of the memory map into one, and there would be
one device where two were meant.
"""

from dataclasses import dataclass

from memfs import ranges
from upgrade.errors import UsageError

LOW_MIB = 2048  # how much of the memory QEMU puts below 4 GiB
HIGH_START_MIB = 4096
BLOCK_MIB = 128  # memory is added and removed in blocks of this size


@dataclass(frozen=True, slots=True)
class Range:
    """Memory that is kept out of the kernel's hands, in MiB."""

    start_mib: int
    size_mib: int

    @property
    def argument(self) -> str:
        """The kernel argument that reserves it."""
        start = f"{self.start_mib // 1024}G" if self.start_mib % 1024 == 0 else f"{self.start_mib}M"
        return f"memmap={self.size_mib}M!{start}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The memory of a guest. ``ordinary_mib`` is what the kernel may use as it likes."""

    ordinary_mib: int
    store_mib: int = 0
    frames_mib: int = 0

    def __post_init__(self) -> None:
        if self.ordinary_mib < 512 or min(self.store_mib, self.frames_mib) < 0:
            raise UsageError(
                "a guest needs at least 512 MiB of ordinary memory", subject=f"{self.ordinary_mib} MiB"
            )

    @property
    def low_mib(self) -> int:
        """What lies below 4 GiB.

        With a range R there is ordinary memory behind it, too: without a table of NUMA nodes the kernel gives a
        node only to what lies below the end of its memory, and memory without a node cannot be brought online.
        """
        return min(self.ordinary_mib - (3 * BLOCK_MIB if self.frames_mib else 0), LOW_MIB)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The reserved ranges: M, then R."""
        store = Range(HIGH_START_MIB, self.store_mib)
        head = head_mib(self.frames_mib)
        behind = HIGH_START_MIB + blocks(self.store_mib) + blocks(head + 1)
        frames = Range(behind - head, self.frames_mib + head) if self.frames_mib else Range(behind, 0)
        return tuple(reserved for reserved in (store, frames) if reserved.size_mib)

    @property
    def total_mib(self) -> int:
        """How much memory the machine must have."""
        ends = [reserved.start_mib + reserved.size_mib - HIGH_START_MIB for reserved in self.ranges]
        reserved = sum(reserved.size_mib for reserved in self.ranges)
        return max(self.ordinary_mib + reserved, self.low_mib + max(ends, default=0))

    @property
    def arguments(self) -> list[str]:
        """The kernel arguments that reserve the ranges."""
        return [reserved.argument for reserved in self.ranges]


def head_mib(frames_mib: int) -> int:
    """Return how much of R is wanted for the frame map and for copied pages."""
    return ranges.head_bytes(frames_mib << 20) >> 20


def blocks(mib: int) -> int:
    """Return ``mib`` rounded up to whole memory blocks."""
    return -(-mib // BLOCK_MIB) * BLOCK_MIB
