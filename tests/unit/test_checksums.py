# SPDX-License-Identifier: MIT
"""Tests of ``memfs.checksums``: every damage to real files is found and named."""

import os
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from memfs import checksums
from memfs.checksums import Sum

PAGE = 4096
SIZE = 3 * PAGE + 100
CONTENT = bytes(i * 7 % 251 for i in range(SIZE))
# The first and last byte of the file, of a page, and of what is left over.
POSITIONS = (0, 1, PAGE - 1, PAGE, 2 * PAGE - 1, 2 * PAGE, 3 * PAGE - 1, 3 * PAGE, SIZE // 2, SIZE - 1)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "pages-1.img").write_bytes(CONTENT)
    (directory / "empty.img").touch()
    (directory / "deep" / "er" / "x.img").write_bytes(b"x")
    (directory / "pages-2.img").symlink_to("/dev/null")
    (directory / "log").symlink_to("pages-1.img")
    os.mkfifo(directory / "pipe")
    return directory


def test_a_tree_holds_every_regular_file(tree: Path) -> None:
    found = checksums.of_tree(tree, 4)
    assert found.keys() == {"pages-1.img", "empty.img", "deep/er/x.img"}
    assert found["pages-1.img"] == Sum(SIZE, xxhash.xxh3_128(CONTENT).hexdigest())
    assert found["empty.img"] == Sum(0, xxhash.xxh3_128(b"").hexdigest())


def test_nothing_is_wrong_with_an_untouched_tree(tree: Path) -> None:
    assert checksums.damage(tree, checksums.of_tree(tree, 1), 3) == []


@pytest.mark.parametrize("bit", [0x01, 0x80])
@pytest.mark.parametrize("position", POSITIONS)
def test_one_wrong_bit_is_found(tree: Path, position: int, bit: int) -> None:
    before = checksums.of_tree(tree, 2)
    with (tree / "pages-1.img").open("r+b") as f:
        f.seek(position)
        f.write(bytes([CONTENT[position] ^ bit]))
    (line,) = checksums.damage(tree, before, 2)
    assert line.startswith("pages-1.img: checksum ")
    assert before["pages-1.img"].digest in line


@pytest.mark.parametrize("size", [0, 1, PAGE, SIZE - 1, SIZE + 1, 4 * PAGE])
def test_another_size_is_found(tree: Path, size: int) -> None:
    before = checksums.of_tree(tree, 2)
    os.truncate(tree / "pages-1.img", size)
    assert checksums.damage(tree, before, 2) == [f"pages-1.img: {size} bytes instead of {SIZE}"]


def test_a_missing_file_is_found(tree: Path) -> None:
    before = checksums.of_tree(tree, 2)
    (tree / "empty.img").unlink()
    (tree / "deep" / "er" / "x.img").unlink()
    (tree / "deep" / "er" / "x.img").mkdir()
    assert sorted(checksums.damage(tree, before, 2)) == [
        "deep/er/x.img: Is a directory",
        "empty.img: No such file or directory",
    ]


def test_swapped_files_are_found(tree: Path) -> None:
    (tree / "other.img").write_bytes(CONTENT[::-1])
    before = checksums.of_tree(tree, 2)
    os.rename(tree / "other.img", tree / "third.img")
    os.rename(tree / "pages-1.img", tree / "other.img")
    os.rename(tree / "third.img", tree / "pages-1.img")
    assert len(checksums.damage(tree, before, 2)) == 2


def test_a_page_of_zeroes_is_found(tree: Path) -> None:
    before = checksums.of_tree(tree, 2)
    with (tree / "pages-1.img").open("r+b") as f:
        f.seek(PAGE)
        f.write(bytes(PAGE))
    assert len(checksums.damage(tree, before, 2)) == 1


def test_threads_do_not_matter(tree: Path) -> None:
    assert checksums.of_tree(tree, 0) == checksums.of_tree(tree, 16)


@given(st.binary(max_size=300), st.data())
@settings(max_examples=50)
def test_no_two_contents_look_alike(content: bytes, data: st.DataObject) -> None:
    other = data.draw(st.binary(max_size=300))
    assert (checksums.of_bytes(content) == checksums.of_bytes(other)) == (content == other)
