# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.spill`` with real memory: half of the physical memory stands in for the ranges."""

import os

import numpy as np
import pytest

from memfs.frames import NOWHERE, Piece, classify
from memfs.pagemap import PAGE_BYTES, pfns
from memfs.ranges import Range
from upgrade.dump.spill import NoRoom, Spill

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="frames are shown to root only")
EVERYWHERE = Piece(Range(1 << 20, 1 << 40), 0)
NEVER = Piece(Range(1 << 50, 1 << 30), 0)


def test_pages_inside_keep_what_is_written() -> None:
    spill = Spill(1000, [EVERYWHERE])
    pieces = list(spill.pages(10, 500))
    assert sum(map(len, pieces)) == 500 * PAGE_BYTES
    pieces[0][:4] = b"here"
    assert bytes(next(spill.pages(10, 1))[:4]) == b"here"
    assert len(spill.blocks) == 1000
    assert len(np.unique(spill.blocks)) == 1000
    assert NOWHERE not in spill.blocks
    assert not spill.moved()


def test_no_room() -> None:
    with pytest.raises(NoRoom, match="100 pages have to be copied, the ranges have room for 0"):
        Spill(100, [NEVER])


def test_what_moved_is_seen() -> None:
    spill = Spill(4, [EVERYWHERE])
    moved = spill.blocks.copy()
    moved[2] += 1
    spill.blocks = moved
    assert spill.moved()


def test_frames_are_the_kernel_s() -> None:
    spill = Spill(16, [EVERYWHERE])
    view = np.frombuffer(spill.maps[0], np.uint8)
    found = classify(
        pfns(os.open("/proc/self/pagemap", os.O_RDONLY), int(view.ctypes.data), 16), [EVERYWHERE]
    )
    assert found.tolist() == spill.blocks.tolist()
