# SPDX-License-Identifier: MIT
"""What has to be written to the start of range R in the new kernel, as one file that is made in the old one.

::

    block 0      the EROFS superblock
    block 1      zeroes: there lay the info block that makes the range devdax (Linux: drivers/nvdimm/pfn_devs.c, 4 KiB)
    from 2 on    the metadata of the EROFS image
    then         copies of stragglers (memfs/frames.py), one behind the other

No frame lies in these blocks: they belong to the gap between the start of R and the memory that the allocator has.
The file lies on range M, where a mapping is the memory itself; ``memfs.install`` takes it to R.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import Self

from memfs import erofs
from memfs.erofs import BLOCK_BYTES, Blocks, Extra, File
from memfs.frames import Gap

META_BLOCK = 2


class GapTooSmall(Exception):
    """The metadata alone would take more than the gap."""

    def __init__(self, needed_bytes: int, gap_bytes: int) -> None:
        super().__init__(
            f"the frame map takes {needed_bytes} bytes, the gap before the frames has {gap_bytes}"
        )
        self.needed_bytes = needed_bytes
        self.gap_bytes = gap_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the metadata goes, and the blocks behind it that stragglers may be copied to."""

    layout: erofs.Layout
    gap: Gap


def layout(files: Iterable[File], gap_bytes: int, device_blocks: int, extra: Sequence[Extra] = ()) -> Plan:
    """Plan the prefix of a (primary) device whose first ``gap_bytes`` hold no frames.

    :raises GapTooSmall: if not even the metadata fits
    :raises ValueError: as ``erofs.plan`` does
    """
    planned = erofs.plan(files, META_BLOCK, device_blocks, extra)
    end = min(gap_bytes // BLOCK_BYTES, device_blocks)
    if planned.meta_end_block > end:
        raise GapTooSmall(planned.meta_end_block * BLOCK_BYTES, gap_bytes)
    return Plan(planned, Gap(planned.meta_end_block, end - planned.meta_end_block))


class Prefix:
    """The file, mapped and writable. Leaving the context writes it out; a page taken from it stays valid."""

    def __init__(self, file: mmap, planned: Plan, copies: int) -> None:
        self._file = file
        self._view = memoryview(file)
        self._layout = planned.layout
        self.copies = Gap(planned.gap.start_block, copies)

    def write(self, blocks: Mapping[str, Blocks], *, uuid: bytes = bytes(16), volume: str = "") -> None:
        """Write the header for files whose pages are ``blocks``; again, if the frames have moved meanwhile.

        :raises ValueError: as ``erofs.write`` does
        """
        start, end = META_BLOCK * BLOCK_BYTES, self.copies.start_block * BLOCK_BYTES
        self._view[:BLOCK_BYTES] = bytes(BLOCK_BYTES)  # no header at all rather than one that fits nothing
        with self._view[start:end] as out:
            header = erofs.write(self._layout, blocks, uuid=uuid, volume=volume, out=out)
            header.metadata.release()
        self._view[:BLOCK_BYTES] = header.block0

    def page(self, block: int) -> memoryview:
        """Return the 4096 bytes of a block that a straggler is copied to, to be written."""
        return self.pages(block, 1)

    def pages(self, first_block: int, count: int) -> memoryview:
        """Return blocks that follow one another, as ``page`` does.

        :raises IndexError: if they are not all blocks for copies
        """
        first = first_block - self.copies.start_block
        if count < 0 or first < 0 or first + count > self.copies.blocks:
            raise IndexError(f"blocks {first_block} to {first_block + count - 1} are not in {self.copies}")
        return self._view[first_block * BLOCK_BYTES : (first_block + count) * BLOCK_BYTES]

    def flush(self) -> None:
        """Write out what was changed."""
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # not closed: pages that the caller still holds would forbid it
        self._file.flush()


def create(path: Path, planned: Plan, copies: int) -> Prefix:
    """Make the file with room for the header and ``copies`` pages; all of it is zero.

    :param copies: the number of blocks of ``FrameMap.copies``
    :raises ValueError: if there are more copies than blocks in the gap
    :raises OSError: ENOSPC, if the file system has not enough room
    """
    if not 0 <= copies <= planned.gap.blocks:
        raise ValueError(f"{copies} copies do not fit into {planned.gap}")
    size = (planned.gap.start_block + copies) * BLOCK_BYTES
    path.unlink(missing_ok=True)
    # the memory of programs: for nobody else
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # else a full file system would be found out by SIGBUS
        os.posix_fallocate(fd, 0, size)
        return Prefix(mmap(fd, size), planned, copies)
    finally:
        os.close(fd)
