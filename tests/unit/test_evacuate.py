# SPDX-License-Identifier: MIT
"""Tests of ``memfs.evacuate`` on made-up trees of sysfs; ``tests/vm/test_frames.py`` has the real kernel."""

from pathlib import Path

import numpy as np
import pytest

from memfs import evacuate, hotplug, room
from memfs.pagemap import PAGE_BYTES
from memfs.ranges import Range
from memfs.residency import Frames
from memfs.room import Block

BLOCK = 128 << 20
PAGES = BLOCK // PAGE_BYTES
SLAB = 1 << 7
LRU = 1 << 5


class Memory:
    """Memory blocks of 128 MiB; the last one is the range's."""

    def __init__(self, root: Path, zones: list[str]) -> None:
        self.root = root
        self.base = root / hotplug.MEMORY
        self.base.mkdir(parents=True)
        (self.base / "block_size_bytes").write_text("8000000\n")
        for number, zone in enumerate(zones):
            (self.base / f"memory{number}").mkdir()
            (self.base / f"memory{number}/state").write_text("online\n")
            (self.base / f"memory{number}/valid_zones").write_text(f"{zone}\n")
        self.flags = np.full((len(zones), PAGES), LRU, np.uint64)
        self.spans = [Range((len(zones) - 1) * BLOCK, BLOCK)]
        (root / "proc").mkdir()

    def blocks(self, *ours: int) -> list[Block]:
        """Return what may be emptied if so many of the containers' pages lie in each block."""
        (self.root / "proc/kpageflags").write_bytes(self.flags.tobytes())
        frames: Frames = np.zeros((len(ours), PAGES), bool)
        for number, count in enumerate(ours):
            frames[number, :count] = True
        return evacuate.blocks(self.spans, frames.ravel(), self.root)

    def state(self, number: int) -> str:
        return (self.base / f"memory{number}/state").read_text().strip()


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path, ["none", "DMA32", "DMA32", "Normal Movable", "Movable"])


def names(blocks: list[Block]) -> list[str]:
    return [block.path.name for block in blocks]


def test_the_fullest_block_comes_first_and_the_range_is_none(memory: Memory) -> None:
    found = memory.blocks(5, 10, 0, 30, 40)
    assert names(found) == ["memory3", "memory1"]
    assert [block.ours for block in found] == [30, 10]


def test_memory_of_the_kernel_is_left_alone(memory: Memory) -> None:
    memory.flags[3, 7] = SLAB
    assert names(memory.blocks(0, 10, 0, 30)) == ["memory1"]


def test_what_is_offline_already_is_left_alone(memory: Memory) -> None:
    (memory.base / "memory1/state").write_text("offline\n")
    assert names(memory.blocks(0, 10, 20, 0)) == ["memory2"]


def test_only_as_many_are_emptied_as_are_wanted(memory: Memory) -> None:
    done = evacuate.evacuate(memory.blocks(0, 10, 20, 30), 45)
    assert (done.emptied, done.refused) == (2, 0)
    # what was offline came back as ordinary memory: the file keeps what was written last
    assert [memory.state(n) for n in range(5)] == ["online", "online", *["online_kernel"] * 2, "online"]
    assert done.longest_ns <= done.duration_ns


def test_a_refusal_is_counted_and_the_next_block_taken(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = room.offline
    monkeypatch.setattr(room, "offline", lambda block: block.path.name != "memory3" and offline(block))
    done = evacuate.evacuate(memory.blocks(0, 10, 20, 30), 20)
    assert (done.emptied, done.refused) == (1, 1)
    assert memory.state(3) == "online"
    assert memory.state(2) == "online_kernel"


def test_an_interrupted_block_comes_back(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = room.offline

    def interrupted(block: Block) -> bool:
        offline(block)
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "offline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evacuate.evacuate(memory.blocks(0, 10), 10)
    assert memory.state(1) == "online_kernel"


def test_blocks_of_a_killed_run_come_back(memory: Memory) -> None:
    (memory.base / "memory2/state").write_text("offline\n")
    evacuate.restore(memory.base / f"memory{number}" for number in (1, 2))
    assert [memory.state(n) for n in (1, 2)] == ["online", "online_kernel"]
