# SPDX-License-Identifier: MIT
"""Tests of ``memfs.erofs``: images as EROFS's own programs and the kernel see them."""

import re
import struct
import subprocess
import tempfile
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
from builders.device import (
    Device,
    Devices,
    as_blocks,
    dump,
    fsck,
    mounted,
    read_pages,
    read_tree,
    why_not_mounted,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from memfs import erofs
from memfs.erofs import (
    BLOCK_BYTES,
    HOLE,
    MOST_BLOCKS,
    MOST_EXTRA,
    Blocks,
    Extra,
    File,
    Header,
    chain,
    plan,
    write,
)

NEEDS_MOUNT = pytest.mark.skipif(bool(why_not_mounted()), reason=why_not_mounted())

Files = dict[str, tuple[int, Blocks]]

DEVICE_BLOCKS = 3000
NEAR, FAR = 1, 2500
FIRST, LAST = 200, 2499  # blocks that hold no header in these tests


def scattered(count: int, seed: int = 1) -> Blocks:
    return np.random.default_rng(seed).permutation(np.arange(FIRST, LAST + 1, dtype=np.uint32))[:count]


def many(count: int, name: str = "pages-{}.img") -> Files:
    return {name.format(i): (BLOCK_BYTES, as_blocks(FIRST + i)) for i in range(count)}


LAYOUTS: dict[str, Files] = {
    "no file": {},
    "empty file": {"empty": (0, as_blocks())},
    "one block": {"one": (BLOCK_BYTES, as_blocks(LAST))},
    "one byte": {"byte": (1, as_blocks(FIRST))},
    "partial last block": {"partial": (2 * BLOCK_BYTES + 4095, as_blocks(700, 300, 500))},
    "in order": {"pages-1.img": (600 * BLOCK_BYTES, np.arange(300, 900, dtype=np.uint32))},
    "scattered": {"pages-1.img": (2300 * BLOCK_BYTES - 1, scattered(2300))},
    "duplicated": {
        "a": (5 * BLOCK_BYTES, as_blocks(900, 900, 901, 900, 900)),
        "b": (2 * BLOCK_BYTES, as_blocks(901, 900)),
    },
    "many files": many(1000),
    "long names": many(100, "{:0255}"),
    # entries of 12 bytes and names: 13 + 14 + 139 * 29 + 38 = 4096
    "full directory block": many(139, "{:017}") | {"z" * 26: (1, as_blocks(LAST))},
    "one byte more": many(139, "{:017}") | {"z" * 27: (1, as_blocks(LAST))},
    "other names": {
        name: (BLOCK_BYTES, as_blocks(FIRST + i))
        for i, name in enumerate(
            ["ä", "Z", "z", "-", "...", "\x01", " ", "日本", "pages-10.img", "pages-2.img"]
        )
    },
    "mixed": {"pages-1.img": (7 * BLOCK_BYTES, scattered(7)), "zero": (0, as_blocks()), **many(300)},
}
HOLES: dict[str, Files] = {
    "only a hole": {"hole": (3 * BLOCK_BYTES - 7, as_blocks(HOLE, HOLE, HOLE))},
    "holes": {"holes": (6 * BLOCK_BYTES, as_blocks(HOLE, 900, HOLE, HOLE, 901, HOLE))},
}


def make(device: Device, files: Files, meta_start_block: int, **options: object) -> Header:
    layout = plan(
        [File(name, size) for name, (size, _) in files.items()], meta_start_block, len(device.content)
    )
    header = write(layout, {name: blocks for name, (_, blocks) in files.items()}, **options)  # type: ignore[arg-type]
    device.put(header)
    return header


def expected(device: Device, files: Files) -> dict[str, bytes]:
    return {name: device.expected(blocks, size) for name, (size, blocks) in files.items()}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device.of_size(tmp_path / "device.img", DEVICE_BLOCKS)


@pytest.mark.parametrize("meta_start_block", [NEAR, FAR])
@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_fsck_extracts_what_the_blocks_hold(
    device: Device, tmp_path: Path, files: Files, meta_start_block: int
) -> None:
    make(device, files, meta_start_block)
    good, text = fsck(device.path, f"--extract={tmp_path / 'out'}")
    assert good, text
    assert read_tree(tmp_path / "out") == expected(device, files)


# What fsck.erofs extracts lacks all holes (1.5, Debian 12) or those at the end of a file (1.8.6, Debian 13): only
# the kernel is asked for their contents.
@pytest.mark.parametrize("files", HOLES.values(), ids=HOLES.keys())
def test_fsck_accepts_holes(device: Device, files: Files) -> None:
    make(device, files, NEAR)
    assert fsck(device.path)[0]


@NEEDS_MOUNT
@pytest.mark.parametrize("meta_start_block", [NEAR, FAR])
@pytest.mark.parametrize("files", (LAYOUTS | HOLES).values(), ids=(LAYOUTS | HOLES).keys())
def test_the_kernel_reads_what_the_blocks_hold(
    device: Device, tmp_path: Path, files: Files, meta_start_block: int
) -> None:
    make(device, files, meta_start_block)
    with mounted(device.path, tmp_path / "mnt") as where:
        assert read_tree(where) == expected(device, files)
        for name, (size, _) in files.items():
            found = (where / name).stat()
            assert (found.st_size, found.st_mode, found.st_nlink, found.st_uid) == (size, 0o100400, 1, 0)
        numbers = {0, where.stat().st_ino, *(p.stat().st_ino for p in where.iterdir())}
        assert len(numbers) == len(files) + 2
        assert not (where / "missing").exists()


def test_dump_shows_the_superblock(device: Device) -> None:
    make(device, LAYOUTS["mixed"], FAR, uuid=bytes(range(16)), volume="0123456789abcde")
    found = dict(line.split(":", 1) for line in dump(device.path, "-s").splitlines() if ":" in line)
    shown = {key: value.strip() for key, value in found.items()}
    assert shown["Filesystem magic number"] == "0xE0F5E1E2"
    assert shown["Filesystem blocks"] == str(DEVICE_BLOCKS)
    assert shown["Filesystem inode metadata start block"] == str(FAR)
    assert shown["Filesystem inode count"] == str(len(LAYOUTS["mixed"]) + 1)
    assert shown["Filesystem features"] == "sb_csum chunked_file"
    assert shown["Filesystem UUID"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert b"0123456789abcde\0" in device.content[0].tobytes()


def test_dump_shows_every_block(device: Device) -> None:
    blocks = as_blocks(900, 300, 300, 2499, 200)
    make(device, {"pages-1.img": (5 * BLOCK_BYTES - 1, blocks)}, FAR)
    text = dump(device.path, "--path=/pages-1.img", "-e")
    assert re.search(r"Size: 20479 .*regular file", text)
    starts = re.findall(r"^ *\d+: +\d+\.\. *\d+ \| +\d+ : +(\d+)\.\.", text, re.MULTILINE)
    assert [int(start) // BLOCK_BYTES for start in starts] == blocks.tolist()


def test_the_layout_is_known_before_the_blocks(device: Device) -> None:
    layout = plan([File("pages-1.img", 1 << 30), File("pages-2.img", 1)], 1, MOST_BLOCKS)
    # 2 MiB of indexes, inodes and the directory
    assert layout.meta_blocks == 512 + 2
    assert layout.meta_end_block == 515


def test_a_full_directory_block_is_followed_by_another() -> None:
    sizes = []
    for name in ("full directory block", "one byte more"):
        files = [File(name, 0) for name in LAYOUTS[name]]
        layout = plan(files, 1, DEVICE_BLOCKS)
        sizes.append(layout.meta_blocks - layout.directory_offset // BLOCK_BYTES)
    assert sizes == [1, 2]


def test_it_is_written_to_where_one_wants_it(device: Device) -> None:
    files = LAYOUTS["mixed"]
    header = make(device, files, FAR)
    with mmap(-1, header.layout.meta_blocks * BLOCK_BYTES) as out:
        out[:] = b"\xff" * len(out)
        blocks = {name: blocks for name, (_, blocks) in files.items()}
        again = write(header.layout, blocks, out=out)
        assert out[:] == bytes(header.metadata)
        again.metadata.release()


@pytest.mark.parametrize("files", [{}, LAYOUTS["one byte"]], ids=["none", "one"])
def test_nothing_is_left_of_what_was_there_before(device: Device, files: Files) -> None:
    header = make(device, files, FAR)
    out = bytearray(b"\xff" * header.layout.meta_blocks * BLOCK_BYTES)
    write(header.layout, {name: blocks for name, (_, blocks) in files.items()}, out=out)
    assert out == header.metadata


def test_only_the_header_is_written(device: Device) -> None:
    before = device.content.copy()
    layout = make(device, LAYOUTS["scattered"], FAR).layout
    differs = np.flatnonzero((device.content != before).any(axis=1))
    assert set(differs) == {0, *range(FAR, layout.meta_end_block)}


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_layout_is_what_fsck_extracts(data: st.DataObject) -> None:
    check_random(data, holes=False)


@NEEDS_MOUNT
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_layout_is_what_the_kernel_reads(data: st.DataObject) -> None:
    check_random(data, holes=True)


def check_random(data: st.DataObject, *, holes: bool) -> None:
    names = st.binary(min_size=1, max_size=60).map(bytes.hex) | st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60
    ).filter(lambda name: name not in (".", ".."))
    sizes = data.draw(st.dictionaries(names, st.integers(0, 40 * BLOCK_BYTES), max_size=40))
    meta_start_block = data.draw(st.integers(1, 60))
    layout = plan([File(name, size) for name, size in sizes.items()], meta_start_block, 200)
    free = [*range(1, meta_start_block), *range(layout.meta_end_block, 200)]
    numbers = st.sampled_from([*free, HOLE] if holes else free)
    files: Files = {}
    for file in layout.files:
        drawn = data.draw(st.lists(numbers, min_size=file.blocks, max_size=file.blocks))
        files[file.name] = (file.size_bytes, as_blocks(*drawn))
    with tempfile.TemporaryDirectory() as directory:
        device = Device.of_size(Path(directory) / "device.img", 200)
        make(device, files, meta_start_block)
        if holes:
            with mounted(device.path, Path(directory) / "mnt") as where:
                assert read_tree(where) == expected(device, files)
        else:
            out = Path(directory) / "out"
            assert fsck(device.path, f"--extract={out}")[0]
            assert read_tree(out) == expected(device, files)


# Bytes that fsck.erofs must miss: magic, checksum, features, root, blocks, metadata's start, uuid, the reserved end.
@pytest.mark.parametrize("offset", [0, 3, 4, 7, 8, 12, 14, 16, 36, 40, 48, 79, 80, 127, 128, 3071])
def test_a_damaged_superblock_is_found(device: Device, offset: int) -> None:
    make(device, LAYOUTS["mixed"], FAR)
    assert fsck(device.path)[0]
    device.content[0, 1024 + offset] ^= 0x10
    device.content.tofile(device.path)
    good, text = fsck(device.path)
    assert not good, text


@NEEDS_MOUNT
def test_the_kernel_refuses_a_damaged_superblock(device: Device, tmp_path: Path) -> None:
    make(device, LAYOUTS["mixed"], FAR)
    device.content[0, 1024 + 36] ^= 0x10
    device.content.tofile(device.path)
    with pytest.raises(subprocess.CalledProcessError), mounted(device.path, tmp_path / "mnt"):
        pass


@pytest.mark.parametrize(
    ("place", "offset", "value"),
    [
        ("root", 0, 0x000F),  # an unknown layout
        ("file", 0, 0x000F),
        ("file", 4, 0),
        ("file", 16, 0xFFFF),  # an unknown chunk format
        ("directory", 8, 0),  # where the first name lies
        ("directory", 8, 13),
        ("directory", 8, 4097),
        ("directory", 12, 0xFFFF),  # the second inode number
    ],
)
def test_damaged_metadata_is_found(device: Device, place: str, offset: int, value: int) -> None:
    layout = make(device, LAYOUTS["mixed"], FAR).layout
    start = {"root": 64, "file": layout.offsets[0], "directory": layout.directory_offset}[place]
    with device.path.open("r+b") as f:
        f.seek(FAR * BLOCK_BYTES + start + offset)
        f.write(struct.pack("<H", value))
    good, text = fsck(device.path, f"--extract={device.path.parent / 'out'}")
    assert not good, text


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0", "x" * 256, "ä" * 128])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a file name"):
        plan([File(name, 1)], 1, 100)


@pytest.mark.parametrize(
    ("files", "meta_start_block", "device_blocks", "why"),
    [
        ([File("a", 1), File("b", 1), File("a", 2)], 1, 100, "twice"),
        ([File("a", -1)], 1, 100, "negative"),
        ([], 0, 100, "not on the device"),
        ([], 99, 100, "not on the device"),
        ([File("a", 512 * 4096)], 1, 3, "not on the device"),
        ([], 1, MOST_BLOCKS + 1, "a device has"),
        ([], 1, 0, "a device has"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(
    files: list[File], meta_start_block: int, device_blocks: int, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        plan(files, meta_start_block, device_blocks)


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        (as_blocks(5), "take 2 blocks"),
        (as_blocks(5, 6, 7), "take 2 blocks"),
        (np.array([5, 6], np.int64), "uint32"),
        (as_blocks(5, 0), "where the header goes"),
        (as_blocks(10, 5), "where the header goes"),
        (as_blocks(5, 11), "where the header goes"),
        (as_blocks(5, 100), "on no device"),
        (as_blocks(HOLE, HOLE - 1), "on no device"),
    ],
)
def test_blocks_that_cannot_be_right_are_refused(blocks: Blocks, why: str) -> None:
    layout = plan([File("a", 4097)], 10, 100)
    assert layout.meta_end_block == 12
    with pytest.raises(ValueError, match=why):
        write(layout, {"a": blocks})
    write(layout, {"a": as_blocks(9, 12)})
    write(layout, {"a": as_blocks(HOLE, 99)})


def test_wrong_sizes_are_refused() -> None:
    layout = plan([], 1, 100)
    for options in ({"uuid": b"x"}, {"volume": "x" * 16}, {"out": bytearray(4096)}):
        with pytest.raises(ValueError, match="bytes"):
            write(layout, {}, **options)
    with pytest.raises(ValueError, match="writable"):
        write(layout, {}, out=memoryview(bytes(8192)))


def test_the_last_block_of_the_largest_device_can_be_named() -> None:
    layout = plan([File("a", BLOCK_BYTES)], MOST_BLOCKS - 100, MOST_BLOCKS)
    header = write(layout, {"a": as_blocks(MOST_BLOCKS - 1)})
    first = layout.offsets[0] + 64
    assert bytes(header.metadata[first : first + 8]) == struct.pack("<HHI", 0, 0, 0xFFFFFFFE)


def test_the_checksum_is_crc32c() -> None:
    # the check value of CRC-32C, which is inverted at the end
    assert erofs._crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


# Two extra devices: their blocks have the numbers from 3000 on, and from 5000 on
EXTRA = chain(DEVICE_BLOCKS, [(2000, "node1"), (1, "node2")])
SECOND, THIRD = (e.first_block for e in EXTRA)
SEVERAL: dict[str, Files] = {
    "one on each": {"a": (3 * BLOCK_BYTES, as_blocks(LAST, SECOND + 1999, THIRD))},
    "only on the second": {"a": (BLOCK_BYTES - 1, as_blocks(SECOND))},
    "only on the primary": LAYOUTS["mixed"],
    "across the ends": {
        "a": (4 * BLOCK_BYTES, as_blocks(2998, 2999, SECOND, SECOND + 1)),
        "b": (2 * BLOCK_BYTES, as_blocks(SECOND + 1999, THIRD)),
    },
    "in order": {"a": (2000 * BLOCK_BYTES, np.arange(SECOND, SECOND + 2000, dtype=np.uint32))},
    "scattered": {
        "a": (
            4000 * BLOCK_BYTES,
            np.random.default_rng(4).permutation(
                np.concatenate([scattered(2000), np.arange(SECOND, SECOND + 2000, dtype=np.uint32)])
            ),
        )
    },
}


def several(directory: Path, device_blocks: int, extra: tuple[Extra, ...]) -> Devices:
    made = (
        (e.first_block, Device.of_size(directory / f"extra{i}.img", e.blocks, seed=i))
        for i, e in enumerate(extra, start=1)
    )
    return Devices(Device.of_size(directory / "device.img", device_blocks), tuple(made))


def make_several(
    devices: Devices, files: Files, meta_start_block: int, extra: tuple[Extra, ...]
) -> dict[str, bytes]:
    """Return what the files hold."""
    sizes = [File(name, size) for name, (size, _) in files.items()]
    layout = plan(sizes, meta_start_block, len(devices.primary.content), extra)
    devices.put(write(layout, {name: blocks for name, (_, blocks) in files.items()}))
    return {name: devices.expected(blocks, size) for name, (size, blocks) in files.items()}


@pytest.mark.parametrize("meta_start_block", [NEAR, 2600])
@pytest.mark.parametrize("files", SEVERAL.values(), ids=SEVERAL.keys())
def test_fsck_extracts_what_several_devices_hold(tmp_path: Path, files: Files, meta_start_block: int) -> None:
    devices = several(tmp_path, DEVICE_BLOCKS, EXTRA)
    expected = make_several(devices, files, meta_start_block, EXTRA)
    options = [f"--device={path}" for path in devices.paths]
    good, text = fsck(devices.primary.path, *options, f"--extract={tmp_path / 'out'}")
    assert good, text
    assert read_tree(tmp_path / "out") == expected


@NEEDS_MOUNT
@pytest.mark.parametrize("files", SEVERAL.values(), ids=SEVERAL.keys())
def test_the_kernel_reads_what_several_devices_hold(tmp_path: Path, files: Files) -> None:
    devices = several(tmp_path, DEVICE_BLOCKS, EXTRA)
    expected = make_several(devices, files, NEAR, EXTRA)
    with mounted(devices.primary.path, tmp_path / "mnt", devices.paths) as where:
        assert read_pages(where) == expected


@NEEDS_MOUNT
def test_the_kernel_takes_neither_fewer_nor_more_devices(tmp_path: Path) -> None:
    devices = several(tmp_path, DEVICE_BLOCKS, EXTRA)
    make_several(devices, SEVERAL["one on each"], NEAR, EXTRA)
    for paths in (devices.paths[:1], [*devices.paths, devices.primary.path]):
        with pytest.raises(subprocess.CalledProcessError):
            with mounted(devices.primary.path, tmp_path / "mnt", paths):
                pass


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_layout_on_several_devices_is_what_fsck_extracts(data: st.DataObject) -> None:
    check_several(data, kernel=False)


@NEEDS_MOUNT
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_any_layout_on_several_devices_is_what_the_kernel_reads(data: st.DataObject) -> None:
    check_several(data, kernel=True)


def check_several(data: st.DataObject, *, kernel: bool) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3 if kernel else 6))
    space = data.draw(st.integers(0, 20))  # between the numbers of devices
    extra = tuple(
        Extra(e.blocks, e.first_block + i * space, e.tag)
        for i, e in enumerate(chain(200, ((n, f"node{i}") for i, n in enumerate(sizes))))
    )
    meta_start_block = data.draw(st.integers(1, 60))
    drawn = data.draw(st.lists(st.integers(0, 20 * BLOCK_BYTES), max_size=10))
    wanted = [File(f"pages-{i}.img", size) for i, size in enumerate(drawn)]
    layout = plan(wanted, meta_start_block, 200, extra)
    free = [*range(1, meta_start_block), *range(layout.meta_end_block, 200)]
    blocks = st.sampled_from([*free, *(b for e in extra for b in range(e.first_block, e.end_block))])
    files: Files = {}
    for file in wanted:
        chosen = data.draw(st.lists(blocks, min_size=file.blocks, max_size=file.blocks))
        files[file.name] = (file.size_bytes, as_blocks(*chosen))
    with tempfile.TemporaryDirectory() as directory:
        devices = several(Path(directory), 200, extra)
        expected = make_several(devices, files, meta_start_block, extra)
        if kernel:
            with mounted(devices.primary.path, Path(directory) / "mnt", devices.paths) as where:
                assert read_pages(where) == expected
        else:
            out = Path(directory) / "out"
            options = [f"--device={path}" for path in devices.paths]
            good, text = fsck(devices.primary.path, *options, f"--extract={out}")
            assert good, text
            assert read_tree(out) == expected


def test_dump_shows_the_device_table(tmp_path: Path) -> None:
    devices = several(tmp_path, DEVICE_BLOCKS, EXTRA)
    make_several(devices, {}, FAR, EXTRA)
    text = dump(devices.primary.path, "-s", *(f"--device={path}" for path in devices.paths))
    assert re.search(r"^Filesystem blocks: +5001$", text, re.MULTILINE)
    assert "device_table" in text
    assert bytes(devices.primary.content[0, 1024 + 36 : 1024 + 40]) == struct.pack("<I", 3000)
    slots = bytes(devices.primary.content[0, 1152:])
    assert slots[:72] == b"node1".ljust(64, b"\0") + struct.pack("<II", 2000, 3000)
    assert slots[128:200] == b"node2".ljust(64, b"\0") + struct.pack("<II", 1, 5000)
    assert not any(slots[256:])


def test_a_chunk_index_has_the_device_and_the_block_there() -> None:
    layout = plan([File("a", 5 * BLOCK_BYTES)], 1, DEVICE_BLOCKS, EXTRA)
    header = write(layout, {"a": as_blocks(2999, SECOND, SECOND + 1999, THIRD, HOLE)})
    first = layout.offsets[0] + 64
    found = [struct.unpack_from("<HHI", header.metadata, first + 8 * i) for i in range(5)]
    assert found == [(0, 0, 2999), (0, 1, 0), (0, 1, 1999), (0, 2, 0), (0, 0, HOLE)]


def test_without_extra_devices_nothing_tells_of_them() -> None:
    header = write(plan([], 1, 100), {})
    assert not any(header.block0[1024 + 84 :])
    assert header.block0[1024 + 80] == 0x4


def test_as_many_devices_as_have_a_slot(tmp_path: Path) -> None:
    extra = chain(DEVICE_BLOCKS, [(3, f"{i:063}") for i in range(MOST_EXTRA)])
    devices = several(tmp_path, DEVICE_BLOCKS, extra)
    blocks = as_blocks(*(e.first_block + 1 for e in extra))
    expected = make_several(devices, {"a": (MOST_EXTRA * BLOCK_BYTES, blocks)}, NEAR, extra)
    options = [f"--device={path}" for path in devices.paths]
    good, text = fsck(devices.primary.path, *options, f"--extract={tmp_path / 'out'}")
    assert good, text
    assert read_tree(tmp_path / "out") == expected
    with pytest.raises(ValueError, match="have a slot"):
        plan([], 1, 100, chain(100, [(1, "")] * (MOST_EXTRA + 1)))


@pytest.mark.parametrize(
    "extra",
    [
        [Extra(10, 99)],
        [Extra(10, 101), Extra(10, 110)],
        [Extra(10, 201), Extra(10, 101)],
        [Extra(0, 101)],
        [Extra(10, MOST_BLOCKS - 9)],
    ],
)
def test_devices_that_are_not_one_behind_the_other_are_refused(extra: list[Extra]) -> None:
    with pytest.raises(ValueError, match="does not lie between"):
        plan([], 1, 100, extra)


def test_a_long_tag_is_refused() -> None:
    plan([], 1, 100, [Extra(1, MOST_BLOCKS - 1, "x" * 63)])
    with pytest.raises(ValueError, match="tag"):
        plan([], 1, 100, [Extra(1, 101, "ä" * 32)])


@pytest.mark.parametrize("block", [100, 105, 116, 119, 121, HOLE - 1])
def test_numbers_that_no_block_has_are_refused(block: int) -> None:
    layout = plan([File("a", 4097)], 10, 100, [Extra(10, 106), Extra(1, 120)])
    with pytest.raises(ValueError, match="on no device"):
        write(layout, {"a": as_blocks(5, block)})
    for good in (99, 106, 115, 120, HOLE):
        write(layout, {"a": as_blocks(5, good)})
