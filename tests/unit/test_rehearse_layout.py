# SPDX-License-Identifier: MIT
"""Where a guest's memory lies: reserved ranges must lie in memory, apart, and leave the kernel its share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrade.errors import UsageError
from upgrade.rehearse.layout import BLOCK_MIB, HIGH_START_MIB, LOW_MIB, Layout, head_mib


def test_usual_layout() -> None:
    layout = Layout(ordinary_mib=3072, store_mib=1024)
    assert layout.arguments == ["memmap=1024M!4G"]
    assert layout.total_mib == 4096


def test_no_reservation() -> None:
    layout = Layout(ordinary_mib=1024)
    assert layout.arguments == []
    assert layout.total_mib == 1024


def test_two_ranges() -> None:
    layout = Layout(ordinary_mib=3072, store_mib=256, frames_mib=1024)
    assert layout.arguments == ["memmap=256M!4G", "memmap=1040M!4464M"]
    assert layout.total_mib == 3072 + 256 + 1040
    assert (layout.ranges[1].start_mib + head_mib(1024)) % BLOCK_MIB == 0


def test_several_ranges_for_frames() -> None:
    layout = Layout(ordinary_mib=3072, store_mib=256, frames_mib=1024, frames_ranges=2)
    assert layout.arguments == ["memmap=256M!4G", "memmap=528M!4464M", "memmap=528M!5104M"]
    assert layout.total_mib == 3072 + 256 + 2 * 528


def test_frames_alone() -> None:
    assert Layout(ordinary_mib=3072, frames_mib=512).arguments == ["memmap=528M!4208M"]


def test_small_machine_with_a_store() -> None:
    layout = Layout(ordinary_mib=1024, store_mib=64)
    assert layout.low_mib == 1024
    assert layout.total_mib == 1024 + 64


@pytest.mark.parametrize("wrong", [(100, 0, 0, 1), (1024, -1, 0, 1), (1024, 0, -1, 1), (1024, 0, 3, 2)])
def test_impossible(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        Layout(*wrong)


sizes = st.integers(min_value=0, max_value=16384)


@given(ordinary=st.integers(1024, 65536), store=sizes, frames=sizes, ranges=st.integers(1, 3))
def test_ranges_are_real_memory_and_apart(ordinary: int, store: int, frames: int, ranges: int) -> None:
    frames *= ranges
    layout = Layout(ordinary, store, frames, ranges)
    end_of_memory = HIGH_START_MIB + layout.total_mib - layout.low_mib
    free_from = HIGH_START_MIB - 1  # the gap below 4 GiB keeps the first range apart from low memory
    for reserved in layout.ranges:
        assert reserved.start_mib > free_from
        free_from = reserved.start_mib + reserved.size_mib
        assert free_from <= end_of_memory
    assert layout.total_mib - store - frames >= ordinary
    assert layout.low_mib <= LOW_MIB
    if frames:
        assert end_of_memory - free_from >= BLOCK_MIB  # the kernel knows R's NUMA node by what lies behind it
