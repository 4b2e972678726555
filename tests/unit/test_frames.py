# SPDX-License-Identifier: MIT
"""Tests of ``memfs.frames``, against a dictionary, and with EROFS all the way to the bytes of the pages."""

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from builders.device import Device, fsck, mounted, read_pages, read_tree, why_not_mounted
from hypothesis import given, settings
from hypothesis import strategies as st

from memfs import prefix
from memfs.erofs import BLOCK_BYTES, MOST_BLOCKS, File, chain, plan, write
from memfs.frames import NOWHERE, FrameMap, Gap, GapFull, Piece, build, classify
from memfs.install import blank, install
from memfs.pagemap import PAGE_BYTES, Pfns
from memfs.ranges import Range

GIB = 1 << 30
MIB = 1 << 20

# R of 1 GiB at 4 GiB; what the allocator has of it begins at 128 MiB
SPAN = Range(4 * GIB, GIB)
PIECE = Piece.behind_gap(SPAN, 128 * MIB)
START = 4 * GIB // PAGE_BYTES
FIRST, END = START + 128 * MIB // PAGE_BYTES, START + GIB // PAGE_BYTES
GAP = Gap(100, 50)

NEEDS_MOUNT = pytest.mark.skipif(bool(why_not_mounted()), reason=why_not_mounted())


def as_pfns(*numbers: int) -> Pfns:
    return np.array(numbers, np.uint64)


def test_a_page_in_the_range_stays_where_it_is() -> None:
    found = build([as_pfns(FIRST, END - 1, FIRST + 7)], [PIECE], GAP)
    assert found.images[0].blocks.tolist() == [FIRST - START, END - 1 - START, FIRST + 7 - START]
    assert found.images[0].blocks.dtype == np.uint32
    assert (found.in_place, found.stragglers, len(found.copies.blocks)) == (3, 0, 0)


@pytest.mark.parametrize(
    "pfn", [0, 1, START - 1, START, FIRST - 1, END, END + (1 << 32), FIRST + (1 << 32), (1 << 55) - 1]
)
def test_every_other_page_is_copied_into_the_gap(pfn: int) -> None:
    found = build([as_pfns(FIRST, pfn)], [PIECE], GAP)
    assert found.images[0].blocks.tolist() == [FIRST - START, 100]
    assert found.images[0].stragglers.tolist() == [1]
    assert (found.in_place, found.stragglers) == (1, 1)
    assert rows(found) == [(0, 1, 100)]


def test_a_frame_is_copied_once_and_what_has_none_each_time() -> None:
    found = build([as_pfns(9, 0, 9, 8), as_pfns(0, 8, FIRST)], [PIECE], GAP)
    assert [image.blocks.tolist() for image in found.images] == [
        [100, 101, 100, 102],
        [103, 102, FIRST - START],
    ]
    assert rows(found) == [(0, 0, 100), (0, 1, 101), (0, 3, 102), (1, 0, 103)]
    assert (found.in_place, found.stragglers) == (1, 6)


def test_several_ranges_lie_one_behind_the_other() -> None:
    second = Piece.behind_gap(Range(16 * GIB, GIB), 2 * MIB, first_block=GIB // BLOCK_BYTES)
    pfns = as_pfns(FIRST, 16 * GIB // PAGE_BYTES + 512, 17 * GIB // PAGE_BYTES - 1, 16 * GIB // PAGE_BYTES)
    for pieces in ([PIECE, second], [second, PIECE]):
        blocks = classify(pfns, pieces).tolist()
        assert blocks == [FIRST - START, GIB // BLOCK_BYTES + 512, 2 * GIB // BLOCK_BYTES - 1, NOWHERE]


def test_no_image_and_empty_images_are_maps_too() -> None:
    assert build([], [PIECE], GAP).images == ()
    found = build([as_pfns(), as_pfns()], [], Gap(1, 0))
    assert [len(image.blocks) for image in found.images] == [0, 0]
    assert rows(found) == []


def test_images_may_be_read_one_after_the_other() -> None:
    found = build((as_pfns(FIRST + i, 5) for i in range(3)), [PIECE], GAP)
    assert [image.blocks[0] for image in found.images] == [FIRST - START + i for i in range(3)]


def test_too_many_stragglers_are_refused() -> None:
    assert len(build([as_pfns(*range(1, 51))], [PIECE], GAP).copies.blocks) == 50
    with pytest.raises(GapFull) as caught:
        build([as_pfns(*range(1, 40), 0, 0), as_pfns(FIRST, *range(30, 50))], [PIECE], GAP)
    assert (caught.value.needed, caught.value.available) == (51, 50)


def test_only_pages_in_place_make_a_map_outdated() -> None:
    old = as_pfns(FIRST, FIRST + 1, 0, 7, FIRST + 2, FIRST + 3)
    image = build([old], [PIECE], GAP).images[0]
    assert image.outdated(old, [PIECE]).tolist() == []
    new = as_pfns(FIRST, 9, FIRST + 8, 0, FIRST + 1, 0)
    assert image.outdated(new, [PIECE]).tolist() == [1, 4, 5]
    assert image.outdated(new[3:5], [PIECE], 3).tolist() == [4]
    with pytest.raises(ValueError, match="of 6"):
        image.outdated(new, [PIECE], 1)


@pytest.mark.parametrize(
    ("pieces", "gap"),
    [
        ([PIECE], Gap(PIECE.first_block - 1, 2)),
        ([PIECE], Gap(PIECE.first_block + 5, 2)),
        ([PIECE, PIECE], GAP),
        ([PIECE, Piece(PIECE.memory, 1 << 20)], GAP),
        ([PIECE, Piece(Range(64 * GIB, GIB), PIECE.first_block + PIECE.pages - 1)], GAP),
    ],
)
def test_overlaps_are_refused(pieces: list[Piece], gap: Gap) -> None:
    with pytest.raises(ValueError, match="overlap"):
        build([], pieces, gap)


def test_what_no_device_has_is_refused() -> None:
    for span, block in ((Range(1, 4096), 1), (Range(4096, 4097), 1), (Range(0, 4096), 1), (SPAN, -1)):
        with pytest.raises(ValueError, match="memmap"):
            Piece(span, block)
    assert Piece(SPAN, MOST_BLOCKS - SPAN.size_bytes // PAGE_BYTES).pages == 1 << 18
    with pytest.raises(ValueError, match="16 TiB"):
        Piece(SPAN, MOST_BLOCKS - SPAN.size_bytes // PAGE_BYTES + 1)
    for gap in (Gap(-1, 1), Gap(MOST_BLOCKS, 1)):
        with pytest.raises(ValueError, match="no blocks"):
            build([], [PIECE], gap)


frames = st.integers(0, 60) | st.integers(0, (1 << 55) - 1)


@given(st.lists(st.lists(frames, max_size=30), max_size=5), st.integers(1, 20), st.integers(0, 20))
def test_any_map_is_what_a_dictionary_says(images: list[list[int]], start: int, length: int) -> None:
    other = Piece(Range(50 * PAGE_BYTES, 5 * PAGE_BYTES), 500)
    pieces = [Piece(Range(start * PAGE_BYTES, length * PAGE_BYTES), 200), other]
    found = build([as_pfns(*image) for image in images], pieces, Gap(1000, 200))
    in_place = {start + i: 200 + i for i in range(length)} | {50 + i: 500 + i for i in range(5)}
    copied: dict[int, int] = {}
    expected_rows: list[tuple[int, int, int]] = []
    expected_blocks: list[int] = []
    for number, image in enumerate(images):
        for page, pfn in enumerate(image):
            block = in_place.get(pfn, copied.get(pfn))
            if block is None:
                block = 1000 + len(expected_rows)
                expected_rows.append((number, page, block))
                if pfn:
                    copied[pfn] = block
            expected_blocks.append(block)
    assert np.concatenate([as_pfns(), *(i.blocks for i in found.images)]).tolist() == expected_blocks
    assert rows(found) == expected_rows
    assert found.in_place + found.stragglers == len(expected_blocks)
    assert found.in_place == sum(b < 1000 for b in expected_blocks)


def rows(found: FrameMap) -> list[tuple[int, int, int]]:
    copies = found.copies
    return list(zip(copies.images.tolist(), copies.pages.tolist(), copies.blocks.tolist(), strict=True))


def test_pages_are_read_through_the_map(tmp_path: Path) -> None:
    """A range of 1024 frames at frame 5000, of which the first 300 are the gap; tasks' pages in and outside of it."""
    random = np.random.default_rng(3)
    memory = random.integers(0, 256, (10000, PAGE_BYTES), np.uint8)
    piece = Piece.behind_gap(Range(5000 * PAGE_BYTES, 1024 * PAGE_BYTES), 300 * PAGE_BYTES)
    images = [random.integers(5300, 6024, n, np.uint64) for n in (500, 1, 333)]
    for image in images[::2]:
        image[random.integers(0, len(image), 20)] = random.integers(7000, 7010, 20)
    files = [File(f"pages-{n}.img", len(image) * PAGE_BYTES) for n, image in enumerate(images, start=1)]

    layout = plan(files, 1, 1024)
    found = build(images, [piece], Gap(layout.meta_end_block, 300 - layout.meta_end_block))
    assert 0 < len(found.copies.blocks) <= 10
    header = write(layout, {f.name: i.blocks for f, i in zip(files, found.images, strict=True)})

    device = Device(tmp_path / "device.img", memory[5000:6024].copy())
    for image_number, page, block in rows(found):
        device.content[block] = memory[images[image_number][page]]
    device.put(header)
    good, text = fsck(device.path, f"--extract={tmp_path / 'out'}")
    assert good, text
    expected = {f.name: memory[i].tobytes() for f, i in zip(files, images, strict=True)}
    assert read_tree(tmp_path / "out") == expected


# A range for each of two nodes, as in the old kernel; each begins with blocks that hold no frames.
NODES = (Range(500 * PAGE_BYTES, 200 * PAGE_BYTES), Range(900 * PAGE_BYTES, 150 * PAGE_BYTES))
GAP_PAGES = (60, 2)
MEMORY = np.random.default_rng(5).integers(0, 256, (1100, PAGE_BYTES), np.uint8)
ZERO_PAGE = bytes(PAGE_BYTES)


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=NEEDS_MOUNT)], ids=["fsck", "kernel"])
def test_pages_on_two_nodes_are_read_through_the_map(tmp_path: Path, kernel: bool) -> None:
    """Also the first and the last frame of each, and those that are not frames of the allocator."""
    random = np.random.default_rng(6)
    edges = as_pfns(560, 699, 902, 1049, 1050, 559, 700, 901, 900, 500, 1, 0, 1, 0)
    images = [
        np.concatenate(
            [random.integers(560, 700, 100, np.uint64), random.integers(902, 1050, 80, np.uint64)]
        ),
        edges,
        edges,
    ]
    check_two_nodes(tmp_path, [as_pfns(*random.permutation(image)) for image in images], kernel=kernel)


inside = st.integers(560, 699) | st.integers(902, 1049)
# few enough for the gap, whatever is drawn
outside = st.sampled_from([*range(1, 10), *range(500, 510), 559, 700, 899, 900, 901, 1050, 1099])


@given(st.lists(st.lists(inside | outside, max_size=40), max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_pages_on_two_nodes_are_what_fsck_extracts(images: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        check_two_nodes(Path(directory), [as_pfns(*image) for image in images], kernel=False)


@NEEDS_MOUNT
@given(st.lists(st.lists(inside | outside, max_size=40), max_size=4))
@settings(max_examples=15, deadline=None)
def test_any_pages_on_two_nodes_are_what_the_kernel_reads(images: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        check_two_nodes(Path(directory), [as_pfns(*image) for image in images], kernel=True)


def check_two_nodes(directory: Path, images: list[Pfns], *, kernel: bool) -> None:
    files = [File(f"pages-{n}.img", len(image) * PAGE_BYTES) for n, image in enumerate(images, start=1)]
    sizes = [node.size_bytes // PAGE_BYTES for node in NODES]
    extra = chain(sizes[0], [(sizes[1], "node1")])
    first_blocks = [0, extra[0].first_block]
    pieces = [
        Piece.behind_gap(node, gap * PAGE_BYTES, block)
        for node, gap, block in zip(NODES, GAP_PAGES, first_blocks, strict=True)
    ]
    planned = prefix.layout(files, GAP_PAGES[0] * PAGE_BYTES, sizes[0], extra)
    found = build(images, pieces, planned.gap)
    with prefix.create(directory / "prefix", planned, len(found.copies.blocks)) as made:
        made.write({f.name: i.blocks for f, i in zip(files, found.images, strict=True)})
        for image, page, block in rows(found):
            pfn = int(images[image][page])
            made.page(block)[:] = MEMORY[pfn].tobytes() if pfn else ZERO_PAGE

    devices = [directory / "pmem0", directory / "pmem1"]
    for device, node in zip(devices, NODES, strict=True):
        first = node.start_bytes // PAGE_BYTES
        device.write_bytes(MEMORY[first : first + node.size_bytes // PAGE_BYTES].tobytes())
    install(directory / "prefix", devices[0])
    blank(devices[1])

    expected = {
        f.name: b"".join(MEMORY[p].tobytes() if p else ZERO_PAGE for p in image)
        for f, image in zip(files, images, strict=True)
    }
    if kernel:
        with mounted(devices[0], directory / "mnt", devices[1:]) as where:
            assert read_pages(where) == expected
    else:
        good, text = fsck(devices[0], f"--device={devices[1]}", f"--extract={directory / 'out'}")
        assert good, text
        assert read_tree(directory / "out") == expected


def test_memory_stays_within_what_is_promised() -> None:
    """4 million pages (16 GiB) in 16 images, one in a thousand a straggler: 4 bytes a page and a few MiB."""
    pages, images = 1 << 22, 16
    piece = Piece.behind_gap(Range(64 * GIB, 32 * GIB), 128 * MIB)
    first = piece.memory.start_bytes // PAGE_BYTES
    each = pages // images
    used: list[int] = []

    def read(number: int) -> Pfns:
        pfns = np.arange(first + number * each, first + (number + 1) * each, dtype=np.uint64)
        pfns[::1000] = 1 + number
        return pfns

    tracemalloc.start()
    try:
        found = build((read(n) for n in range(images)), [piece], Gap(1, 10000))
        used.append(tracemalloc.get_traced_memory()[1])
        layout = plan([File(f"{n}", each * PAGE_BYTES) for n in range(images)], 10001, 32 * GIB // PAGE_BYTES)
        out = bytearray(layout.meta_blocks * BLOCK_BYTES)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        write(layout, {f"{n}": image.blocks for n, image in enumerate(found.images)}, out=out)
        used.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert found.stragglers == images * -(-each // 1000)
    assert used[0] < 2 * (4 * pages + 8 * each + 100 * found.stragglers)
    assert used[1] < 20 * MIB
    assert len(out) < 1.01 * 8 * pages
