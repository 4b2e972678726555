# SPDX-License-Identifier: MIT
"""Where a guest's memory lies, and which parts survive a change of kernel.

::

    0            2 GiB      4 GiB      + store    + gap     + frames
    | ordinary   |   PCI    | M: store | ordinary | R: frames | ordinary ... |

Ranges must not touch each other: the kernel merges neighbours of the memory map into one, and there would be
one device where two were meant.
"""

from dataclasses import dataclass

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
        """What lies below 4 GiB."""
        return min(self.ordinary_mib, LOW_MIB)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The reserved ranges: M, then R."""
        store = Range(HIGH_START_MIB, self.store_mib)
        behind = HIGH_START_MIB + (blocks(self.store_mib) + BLOCK_MIB if self.store_mib else 0)
        frames = Range(behind, self.frames_mib)
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


def blocks(mib: int) -> int:
    """Return ``mib`` rounded up to whole memory blocks."""
    return -(-mib // BLOCK_MIB) * BLOCK_MIB
