# SPDX-License-Identifier: MIT
"""Tests of ``memfs.prefix`` and ``memfs.install``: a file made in one kernel, a device as the next one sees it."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from builders.device import Device, as_blocks, fsck, mounted, read_pages, read_tree, why_not_mounted

from memfs import prefix
from memfs.erofs import BLOCK_BYTES, File, chain
from memfs.frames import Gap
from memfs.install import NoPrefix, blank, install

NEEDS_MOUNT = pytest.mark.skipif(bool(why_not_mounted()), reason=why_not_mounted())

DEVICE_BLOCKS = 1000
GAP_BLOCKS = 300
FILES = [File("pages-1.img", 5 * BLOCK_BYTES), File("pages-2.img", 100 * BLOCK_BYTES)]
INFO_BLOCK = b"NVDIMM_PFN_INFO"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = Device.of_size(tmp_path / "pmem0", DEVICE_BLOCKS)
    made.content[1, : len(INFO_BLOCK)] = np.frombuffer(INFO_BLOCK, np.uint8)
    made.content.tofile(made.path)
    return made


def pages(count: int, seed: int = 9) -> bytes:
    return np.random.default_rng(seed).bytes(count * BLOCK_BYTES)


def test_the_gap_for_copies_begins_behind_the_metadata() -> None:
    planned = prefix.layout(FILES, GAP_BLOCKS * BLOCK_BYTES + 4095, DEVICE_BLOCKS)
    end = planned.layout.meta_end_block
    assert planned.layout.meta_start_block == 2
    assert planned.gap == Gap(end, GAP_BLOCKS - end)


def test_the_gap_ends_with_the_device() -> None:
    planned = prefix.layout(FILES, 1 << 40, DEVICE_BLOCKS)
    assert planned.gap.start_block + planned.gap.blocks == DEVICE_BLOCKS


def test_a_gap_may_be_full_of_metadata_but_not_smaller() -> None:
    need = prefix.layout(FILES, GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS).layout.meta_end_block
    assert prefix.layout(FILES, need * BLOCK_BYTES, DEVICE_BLOCKS).gap.blocks == 0
    with pytest.raises(prefix.GapTooSmall) as caught:
        prefix.layout(FILES, need * BLOCK_BYTES - 1, DEVICE_BLOCKS)
    assert caught.value.needed_bytes == need * BLOCK_BYTES


def test_the_device_has_files_of_frames_and_copies(device: Device, tmp_path: Path) -> None:
    planned = prefix.layout(FILES, GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    first = planned.gap.start_block
    frames = np.random.default_rng(2).permutation(np.arange(GAP_BLOCKS, DEVICE_BLOCKS, dtype=np.uint32))[:100]
    frames[[7, 70]] = first + 1, first + 2
    blocks = {"pages-1.img": as_blocks(first, 999, 300, first + 2, 301), "pages-2.img": frames}
    copies = pages(3)
    with prefix.create(tmp_path / "prefix", planned, 3) as made:
        made.page(first)[:] = copies[:BLOCK_BYTES]
        made.pages(first + 1, 2)[:] = copies[BLOCK_BYTES:]
        made.write(blocks)
    before = device.content.copy()
    size = install(tmp_path / "prefix", device.path)
    assert size == (first + 3) * BLOCK_BYTES == (tmp_path / "prefix").stat().st_size

    now = np.fromfile(device.path, np.uint8).reshape(DEVICE_BLOCKS, BLOCK_BYTES)
    assert not now[1].any()
    assert now[first : first + 3].tobytes() == copies
    assert (now[first + 3 :] == before[first + 3 :]).all()
    good, text = fsck(device.path, f"--extract={tmp_path / 'out'}")
    assert good, text
    assert read_tree(tmp_path / "out") == {name: now[b].tobytes() for name, b in blocks.items()}


@NEEDS_MOUNT
def test_it_is_installed_on_a_block_device(device: Device, tmp_path: Path) -> None:
    planned = prefix.layout([File("a", BLOCK_BYTES)], GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    with prefix.create(tmp_path / "prefix", planned, 1) as made:
        made.write({"a": as_blocks(planned.gap.start_block)})
        made.page(planned.gap.start_block)[:] = pages(1)
    command = ["losetup", "--find", "--show", str(device.path)]
    loop = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        install(tmp_path / "prefix", Path(loop))
        with mounted(Path(loop), tmp_path / "mnt") as where:
            assert read_pages(where) == {"a": pages(1)}
            with pytest.raises(OSError, match="busy"):
                install(tmp_path / "prefix", Path(loop))
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_frames_that_moved_are_written_again(tmp_path: Path) -> None:
    planned = prefix.layout([File("a", BLOCK_BYTES)], GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    made, once = tmp_path / "prefix", tmp_path / "once"
    for path, blocks in ((once, [400]), (made, [500, 400])):
        with prefix.create(path, planned, 0) as file:
            for block in blocks:
                file.write({"a": as_blocks(block)})
    assert made.read_bytes() == once.read_bytes()


def test_blocks_that_do_not_fit_leave_no_header(tmp_path: Path) -> None:
    planned = prefix.layout([File("a", BLOCK_BYTES)], GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    with prefix.create(tmp_path / "prefix", planned, 0) as made:
        made.write({"a": as_blocks(400)})
        with pytest.raises(ValueError, match="on no device"):
            made.write({"a": as_blocks(DEVICE_BLOCKS)})
    with pytest.raises(NoPrefix):
        install(tmp_path / "prefix", tmp_path / "nowhere")


def test_what_lay_in_the_file_is_gone(tmp_path: Path) -> None:
    planned = prefix.layout([], GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS, chain(DEVICE_BLOCKS, [(5, "")]))
    (tmp_path / "prefix").write_bytes(b"x" * 100 * BLOCK_BYTES)
    with prefix.create(tmp_path / "prefix", planned, 2):
        pass
    found = (tmp_path / "prefix").read_bytes()
    assert len(found) == (planned.gap.start_block + 2) * BLOCK_BYTES
    assert not any(found)
    assert (tmp_path / "prefix").stat().st_mode & 0o077 == 0


def test_only_blocks_for_copies_are_given(tmp_path: Path) -> None:
    planned = prefix.layout(FILES, GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    first = planned.gap.start_block
    with prefix.create(tmp_path / "prefix", planned, 2) as made:
        assert len(made.pages(first, 2)) == 2 * BLOCK_BYTES
        assert len(made.pages(first + 2, 0)) == 0
        for block, count in ((first - 1, 1), (first + 2, 1), (first + 1, 2), (0, 1), (first, -1)):
            with pytest.raises(IndexError):
                made.pages(block, count)


def test_more_copies_than_the_gap_holds_are_refused(tmp_path: Path) -> None:
    planned = prefix.layout(FILES, GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    for copies in (planned.gap.blocks + 1, -1):
        with pytest.raises(ValueError, match="do not fit"):
            prefix.create(tmp_path / "prefix", planned, copies)
    assert not (tmp_path / "prefix").exists()


@NEEDS_MOUNT
def test_a_full_file_system_is_an_error_not_a_signal(tmp_path: Path) -> None:
    planned = prefix.layout(FILES, GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    where = tmp_path / "full"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", where], check=True)
    try:
        with pytest.raises(OSError, match="No space"):
            prefix.create(where / "prefix", planned, planned.gap.blocks)
    finally:
        subprocess.run(["umount", where], check=True)


@NEEDS_MOUNT
def test_an_error_of_the_device_is_told_as_it_is(tmp_path: Path) -> None:
    """And what was written before it is no file system."""
    planned = prefix.layout(FILES, GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    with prefix.create(tmp_path / "prefix", planned, planned.gap.blocks) as made:
        made.write({f.name: np.arange(400, 400 + f.blocks, dtype=np.uint32) for f in FILES})
    where = tmp_path / "full"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", where], check=True)
    try:
        (where / "pmem0").touch()
        os.truncate(where / "pmem0", DEVICE_BLOCKS * BLOCK_BYTES)
        with pytest.raises(OSError, match="No space"):
            install(tmp_path / "prefix", where / "pmem0")
        with (where / "pmem0").open("rb") as f:
            assert not any(f.read(BLOCK_BYTES))
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.parametrize("content", [b"", bytes(4096), bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(2 * 4096)])
def test_what_is_no_prefix_is_not_installed(device: Device, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prefix").write_bytes(content)
    with pytest.raises(NoPrefix):
        install(tmp_path / "prefix", device.path)
    assert device.path.read_bytes() == device.content.tobytes()


def test_a_small_device_is_left_alone(tmp_path: Path) -> None:
    planned = prefix.layout([], GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    with prefix.create(tmp_path / "prefix", planned, 2) as made:
        made.write({})
    small = tmp_path / "small"
    small.write_bytes(b"x" * (os.stat(tmp_path / "prefix").st_size - 1))
    with pytest.raises(NoPrefix, match="more than"):
        install(tmp_path / "prefix", small)
    assert set(small.read_bytes()) == {ord("x")}


def test_no_file_is_made_where_no_device_is(tmp_path: Path) -> None:
    planned = prefix.layout([], GAP_BLOCKS * BLOCK_BYTES, DEVICE_BLOCKS)
    with prefix.create(tmp_path / "prefix", planned, 0) as made:
        made.write({})
    with pytest.raises(FileNotFoundError):
        install(tmp_path / "prefix", tmp_path / "pmem7")
    assert not (tmp_path / "pmem7").exists()


def test_an_extra_device_loses_its_info_block_only(device: Device) -> None:
    blank(device.path)
    now = np.fromfile(device.path, np.uint8).reshape(DEVICE_BLOCKS, BLOCK_BYTES)
    assert not now[:2].any()
    assert (now[2:] == device.content[2:]).all()
