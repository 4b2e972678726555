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
    frames_ranges: int = 1
    """Into so many ranges ``frames_mib`` is divided, as on a machine with several NUMA nodes."""

    def __post_init__(self) -> None:
        if self.ordinary_mib < 512 or min(self.store_mib, self.frames_mib) < 0:
            raise UsageError(
                "a guest needs at least 512 MiB of ordinary memory", subject=f"{self.ordinary_mib} MiB"
            )
        if self.frames_ranges < 1 or self.frames_mib % self.frames_ranges:
            raise UsageError(f"cannot be divided into {self.frames_ranges}", subject=f"{self.frames_mib} MiB")

    @property
    def low_mib(self) -> int:
        """What lies below 4 GiB.

        With a range R there is ordinary memory behind it, too: without a table of NUMA nodes the kernel gives a
        node only to what lies below the end of its memory, and memory without a node cannot be brought online.
        """
        above = (1 + 2 * self.frames_ranges) * BLOCK_MIB if self.frames_mib else 0
        return min(self.ordinary_mib - above, LOW_MIB)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The reserved ranges: M, then each R."""
        found = [Range(HIGH_START_MIB, self.store_mib)] if self.store_mib else []
        free = HIGH_START_MIB + blocks(self.store_mib)
        each = self.frames_mib // self.frames_ranges
        head = head_mib(each)
        for _ in range(self.frames_ranges if each else 0):
            online = free + blocks(head + 1)  # never side by side with what lies before
            found.append(Range(online - head, each + head))
            free = blocks(online + each)
        return tuple(found)

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
