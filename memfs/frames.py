# SPDX-License-Identifier: MIT
"""The frame map: which block of the device each page of ``pages-N.img`` is.

The device is range R. If R consists of several physical ranges, these are devices of their own and their blocks have
one numbering (``erofs.chain``). A page whose frame lies in a part of it that holds frames is *in place*: its block is
what it is. All others are *stragglers*: swapped, in other memory, part of the kernel's image as the vDSO is. They are
copied to blocks in the gap, one after the other; a frame that is mapped more than once is copied once.

Memory: 4 bytes a page for the blocks, about 100 bytes a straggler, and a few MiB. The frames of an image (8 bytes a
page) are no longer needed once it has been added: 64 GiB in images of 1 GiB take 64 MiB and 2 MiB. Measured for
that, with 192 stragglers and one piece or two: 82 MiB, 0.1 to 0.5 s (two cores of a virtual machine).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from memfs.erofs import HOLE, MOST_BLOCKS, Blocks
from memfs.pagemap import PAGE_BYTES, Pages, Pfns
from memfs.ranges import Range

# No block of a device. A map never holds it: what is nowhere gets a block of the gap.
NOWHERE = HOLE

_AT_ONCE = 1 << 17  # pages


class GapFull(Exception):
    """There are more pages to copy than blocks to copy them to."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"{needed} pages lie outside the ranges, and there are blocks for {available}")
        self.needed = needed
        self.available = available


@dataclass(frozen=True, slots=True)
class Piece:
    """Physical memory that holds frames, and the block of the device that its first frame is."""

    memory: Range
    first_block: int

    def __post_init__(self) -> None:
        if self.memory.start_bytes % PAGE_BYTES or self.memory.size_bytes % PAGE_BYTES:
            raise ValueError(f"{self.memory} does not consist of pages")
        if self.memory.start_bytes <= 0 or self.memory.size_bytes < 0:
            raise ValueError(f"{self.memory}: frame 0 stands for none")  # and belongs to the firmware
        if self.first_block < 0 or self.first_block + self.pages > MOST_BLOCKS:
            raise ValueError(f"{self.memory} from block {self.first_block} on: a device ends at 16 TiB")

    @property
    def pages(self) -> int:
        """Return the number of its frames."""
        return self.memory.size_bytes // PAGE_BYTES

    @classmethod
    def behind_gap(cls, span: Range, gap_bytes: int, first_block: int = 0) -> "Piece":
        """Return what of a range holds frames: all but the gap, which begins at block ``first_block``."""
        memory = Range(span.start_bytes + gap_bytes, span.size_bytes - gap_bytes)
        return cls(memory, first_block + gap_bytes // PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class Gap:
    """Blocks that may be written: no frame lies in them."""

    start_block: int
    blocks: int


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One ``pages-N.img``: the block of every page, and which pages (ascending) are stragglers."""

    blocks: Blocks
    stragglers: Pages

    def outdated(self, pfns: Pfns, pieces: Sequence[Piece], first_page: int = 0) -> Pages:
        """Return which pages in place are no longer where the map says, ascending.

        Stragglers are not looked at: as long as their tasks are stopped, their copies are right wherever the
        original goes.

        :param pfns: a new reading of the pages from ``first_page`` on, of all of them or only some
        """
        now = classify(pfns, pieces)
        recorded = self.blocks[first_page : first_page + len(pfns)]
        if len(recorded) != len(now):
            raise ValueError(f"pages {first_page} to {first_page + len(now) - 1} of {len(self.blocks)}")
        moved = np.flatnonzero(now != recorded) + first_page
        return moved[~np.isin(moved, self.stragglers, assume_unique=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """What has to be copied: a page of an image to a block, a row each, blocks ascending without a hole."""

    images: Pages
    pages: Pages
    blocks: Blocks


@dataclass(frozen=True, slots=True, eq=False)
class FrameMap:
    """The images in the order given, the copies that make it complete, and the number of pages by kind."""

    images: tuple[Image, ...]
    copies: Copies
    in_place: int
    stragglers: int


def classify(pfns: Pfns, pieces: Sequence[Piece]) -> Blocks:
    """Return the block that each frame is; ``NOWHERE`` for those that are none."""
    blocks = np.full(len(pfns), NOWHERE, np.uint32)
    for at in range(0, len(pfns), _AT_ONCE):
        some, result = pfns[at : at + _AT_ONCE], blocks[at : at + _AT_ONCE]
        for piece in pieces:
            # frames before the start become large numbers
            index = some - np.uint64(piece.memory.start_bytes // PAGE_BYTES)
            inside = index < np.uint64(piece.pages)
            index += np.uint64(piece.first_block)
            np.copyto(result, index, where=inside, casting="unsafe")
    return blocks


def build(images: Iterable[Pfns], pieces: Sequence[Piece], gap: Gap) -> FrameMap:
    """Return the map of ``images``, each given as the frames of its pages in file order, 0 for none.

    ``images`` may be a generator that reads one after the other. Where most pages may lie outside, count with
    ``classify`` first: the stragglers are all gathered before ``GapFull`` can tell their exact number.

    :raises GapFull: if the stragglers do not fit into ``gap``
    :raises ValueError: if pieces and gap overlap on the device, or pieces in memory
    """
    _refuse_overlaps(pieces, gap)
    blocks, pages, frames = [], [], []
    for pfns in images:
        found = classify(pfns, pieces)
        outside = np.flatnonzero(found == NOWHERE)
        blocks.append(found)
        pages.append(outside)
        frames.append(pfns[outside])
    numbers = [np.full(len(p), i, np.int64) for i, p in enumerate(pages)]
    where = _number_frames(np.concatenate([np.empty(0, np.uint64), *frames]))
    needed = int(where.max(initial=-1)) + 1
    if needed > gap.blocks:
        raise GapFull(needed, gap.blocks)
    at = 0
    for found, outside in zip(blocks, pages, strict=True):
        found[outside] = where[at : at + len(outside)] + gap.start_block
        at += len(outside)
    # the first page of several with the same frame is the one that is copied
    first = np.unique(where, return_index=True)[1]
    copies = Copies(
        np.concatenate([np.empty(0, np.int64), *numbers])[first],
        np.concatenate([np.empty(0, np.int64), *pages])[first],
        np.arange(gap.start_block, gap.start_block + needed, dtype=np.uint32),
    )
    made = tuple(Image(b, p) for b, p in zip(blocks, pages, strict=True))
    return FrameMap(made, copies, sum(map(len, blocks)) - len(where), len(where))


def _number_frames(frames: Pfns) -> Pages:
    """Return 0, 1, 2 … for frames in the order of their first appearance; each 0 is one of its own."""
    own = frames.copy()
    absent = frames == 0
    # numbers that no frame has: they have 55 bits at most
    own[absent] = np.arange(np.count_nonzero(absent), dtype=np.uint64) + np.uint64(1 << 63)
    _, first, inverse = np.unique(own, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _refuse_overlaps(pieces: Sequence[Piece], gap: Gap) -> None:
    on_device = [(p.first_block, p.first_block + p.pages) for p in pieces if p.pages]
    on_device += [(gap.start_block, gap.start_block + gap.blocks)] if gap.blocks else []
    in_memory = [(p.memory.start_bytes, p.memory.end_bytes) for p in pieces if p.pages]
    for spans in (sorted(on_device), sorted(in_memory)):
        for one, other in pairwise(spans):
            if one[1] > other[0]:
                raise ValueError(f"{one[0]:#x} to {one[1]:#x} and {other[0]:#x} to {other[1]:#x} overlap")
    if gap.start_block < 0 or gap.start_block + gap.blocks > MOST_BLOCKS:
        raise ValueError(f"no blocks: {gap.blocks} from {gap.start_block} on")
