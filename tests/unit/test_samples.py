# SPDX-License-Identifier: MIT
"""Tests of ``memfs.samples``: what is taken from one copy of the pages, and compared with another."""

import os
import struct
import tempfile
from array import array
from collections.abc import Mapping
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from memfs import samples
from memfs.samples import CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, Damage, NoSamples, Sampled, choose, every

PAGES = {
    "pages-1.img": 32 * 600 + 5,
    "pages-2.img": 1,
    "pages-3.img": 32,
    "pages-4.img": 0,
    "pages-5.img": 33,
}


class Memory:
    """What the processes have, and each reading of it."""

    def __init__(self, pages: Mapping[str, int]) -> None:
        self.pages = pages
        self.content = {name: bytearray(os.urandom(count * PAGE_BYTES)) for name, count in pages.items()}
        self.read_pages: list[int] = []

    def read(self, name: str, first: int, count: int) -> memoryview:
        assert first >= 0
        assert first + count <= self.pages[name]
        self.read_pages.append(count)
        return memoryview(self.content[name])[first * PAGE_BYTES : (first + count) * PAGE_BYTES]

    def write(self, directory: Path) -> None:
        for name, content in self.content.items():
            (directory / name).write_bytes(content)


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory(PAGES)


def take(memory: Memory, chosen: Mapping[str, samples.Chunks], threads: int = 2) -> dict[str, Sampled]:
    return samples.take(memory.read, memory.pages, chosen, threads)


def spoil(path: Path, *pages: int) -> None:
    with path.open("r+b") as f:
        for page in pages:
            at = page * PAGE_BYTES + 17
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_digest_is_that_of_the_chunk(memory: Memory, threads: int) -> None:
    found = take(memory, every(PAGES), threads)
    assert list(found) == list(PAGES)
    for name, content in memory.content.items():
        chunks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        assert found[name].digests.tolist() == [xxhash.xxh3_64_intdigest(bytes(c)) for c in chunks]
        assert (found[name].pages, list(found[name].chunks)) == (PAGES[name], list(range(len(chunks))))


def test_pages_are_read_in_large_pieces_and_once(memory: Memory) -> None:
    memory.read_pages.clear()
    take(memory, every(PAGES))
    assert max(memory.read_pages) == 256
    assert sum(memory.read_pages) == sum(PAGES.values())
    assert len(memory.read_pages) <= 600 // 8 + 10


def test_only_what_was_chosen_is_read(memory: Memory) -> None:
    memory.read_pages.clear()
    chosen = {"pages-1.img": [0, 1, 2, 300, 599, 600], "pages-2.img": [0], "pages-5.img": [1]}
    found = take(memory, chosen)
    assert sorted(memory.read_pages) == [1, 1, 32, 37, 96]
    whole = take(memory, every(PAGES))
    for name, chunks in chosen.items():
        assert found[name].digests.tolist() == [whole[name].digests[n] for n in chunks]


@pytest.mark.parametrize("sampled", ["every", "some"])
def test_what_is_as_it_was_is_not_damaged(memory: Memory, tmp_path: Path, sampled: str) -> None:
    memory.write(tmp_path)
    found = take(memory, every(PAGES) if sampled == "every" else choose(PAGES, 50))
    assert samples.verify(tmp_path, found, 2) == []


def test_each_spoiled_chunk_is_named(memory: Memory, tmp_path: Path) -> None:
    memory.write(tmp_path)
    found = take(memory, every(PAGES))
    spoil(tmp_path / "pages-1.img", 3, 32, 80, 81, 511 * 32, 512 * 32 + 31, 600 * 32 + 4)
    spoil(tmp_path / "pages-5.img", 32)
    assert samples.verify(tmp_path, found, 2) == [
        # 511 and 512 are parts of different shares
        Damage("pages-1.img", ((0, 96), (511 * 32, 64), (600 * 32, 5))),
        Damage("pages-5.img", ((32, 1),)),
    ]


def test_only_sampled_chunks_are_compared(memory: Memory, tmp_path: Path) -> None:
    memory.write(tmp_path)
    found = take(memory, {"pages-1.img": [5, 500]})
    spoil(tmp_path / "pages-1.img", 32 * 4 + 31, 32 * 6, 32 * 500 + 3)
    spoil(tmp_path / "pages-2.img", 0)
    assert samples.verify(tmp_path, found, 2) == [Damage("pages-1.img", ((16000, 32),))]


def test_files_that_are_missing_or_have_another_size_are_damaged(memory: Memory, tmp_path: Path) -> None:
    memory.write(tmp_path)
    found = take(memory, every(PAGES))
    (tmp_path / "pages-1.img").unlink()
    os.truncate(tmp_path / "pages-3.img", 31 * PAGE_BYTES)
    os.truncate(tmp_path / "pages-4.img", 1)
    damage = samples.verify(tmp_path, found, 2)
    assert damage == [
        Damage("pages-1.img", ((0, PAGES["pages-1.img"]),), "No such file or directory"),
        Damage("pages-3.img", ((0, 32),), "126976 bytes instead of 131072"),
        Damage("pages-4.img", (), "1 bytes instead of 0"),
    ]
    assert damage[1].pages == 32


def test_damage_is_said_in_a_line() -> None:
    assert str(Damage("a", ((0, 16), (32, 1)))) == "a: other contents, pages 0 to 15, 32 to 32"
    assert str(Damage("a", tuple((i, 1) for i in range(0, 14, 2)))).endswith("6 to 6 and 3 more runs")
    assert str(Damage("a", (), "1 bytes instead of 0")) == "a: 1 bytes instead of 0"


def test_a_reader_that_returns_too_little_is_found_out(memory: Memory) -> None:
    for content in (bytes(PAGE_BYTES - 1), bytes(2 * PAGE_BYTES)):
        with pytest.raises(ValueError, match="of 1 pages from 0 on"):
            samples.take(lambda *_, c=content: c, {"a": 1}, every({"a": 1}), 2)


def test_a_reader_that_fails_fails_all() -> None:
    def read(name: str, first: int, count: int) -> bytes:
        raise ProcessLookupError(name)

    with pytest.raises(ProcessLookupError):
        samples.take(read, PAGES, every(PAGES), 2)


counts = st.lists(st.integers(0, 300), max_size=12)


@given(counts, st.integers(0, 60), st.integers(0, 1 << 32))
def test_a_choice_is_small_and_leaves_no_file_out(pages: list[int], most: int, seed: int) -> None:
    files = {f"pages-{i}.img": count for i, count in enumerate(pages)}
    chosen = choose(files, most, seed)
    assert chosen.keys() == files.keys()
    total = 0
    for name, count in files.items():
        numbers = list(chosen[name])
        assert numbers == sorted(set(numbers))
        assert all(0 <= n < -(-count // CHUNK_PAGES) for n in numbers)
        assert bool(numbers) == bool(count)
        total += len(numbers)
    assert total <= max(most, sum(1 for count in pages if count))


def test_a_choice_reaches_everywhere() -> None:
    files = {"a": 32 * 100, "b": 32 * 900}
    drawn = [choose(files, 100, seed) for seed in range(200)]
    for name, count in (("a", 100), ("b", 900)):
        assert {n for chosen in drawn for n in chosen[name]} == set(range(count))
    assert all(len(c["a"]) + len(c["b"]) >= 98 for c in drawn)
    assert sum(len(c["a"]) for c in drawn) < sum(len(c["b"]) for c in drawn) / 5


def test_few_chunks_are_all_taken() -> None:
    assert choose(PAGES, 700) == every(PAGES)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(0, 400)),
    st.data(),
)
@settings(deadline=None)  # it writes files out
def test_samples_are_loaded_as_they_were_saved(files: dict[str, int], data: st.DataObject) -> None:
    chosen = choose(files, data.draw(st.integers(0, 50)), 1)
    numbers = st.integers(0, (1 << 64) - 1)
    made = {
        name: Sampled(
            files[name],
            chunks,
            array("Q", data.draw(st.lists(numbers, min_size=len(chunks), max_size=len(chunks)))),
        )
        for name, chunks in chosen.items()
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "samples"
        samples.save(made, path)
        found = samples.load(path)
        assert list(found) == list(made)
        for name, sampled in made.items():
            again = found[name]
            assert (again.pages, list(again.chunks)) == (sampled.pages, list(sampled.chunks))
            assert again.digests == sampled.digests
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content) - 1))
        for damaged in (content[:cut], content + b"x", b"x" + content[1:]):
            path.write_bytes(damaged)
            with pytest.raises(NoSamples):
                samples.load(path)


def test_full_samples_take_8_bytes_a_chunk(memory: Memory, tmp_path: Path) -> None:
    samples.save(take(memory, every(PAGES)), tmp_path / "samples")
    chunks = 601 + 1 + 1 + 0 + 2
    assert (tmp_path / "samples").stat().st_size == 12 + 5 * (19 + 11) + 8 * chunks


@pytest.mark.parametrize(("count", "kind"), [(2, 1), (0, 1), (2, 0)])
def test_numbers_that_cannot_be_right_are_refused(tmp_path: Path, count: int, kind: int) -> None:
    head = struct.pack("<8sI", b"SUSAMPL1", 1) + struct.pack("<HQQB", 1, 32, count, kind) + b"a"
    (tmp_path / "samples").write_bytes(head + bytes(8 * count * (2 - kind)))
    with pytest.raises(NoSamples, match="chunks of 32 pages"):
        samples.load(tmp_path / "samples")


def test_saved_samples_verify_in_the_new_kernel(memory: Memory, tmp_path: Path) -> None:
    directory = tmp_path / "images"
    directory.mkdir()
    memory.write(directory)
    samples.save(take(memory, choose(PAGES, 100, 1)), tmp_path / "samples")
    loaded = samples.load(tmp_path / "samples")
    assert samples.verify(directory, loaded, 2) == []
    page = loaded["pages-1.img"].chunks[7] * CHUNK_PAGES
    spoil(directory / "pages-1.img", page + 2)
    assert samples.verify(directory, loaded, 2) == [Damage("pages-1.img", ((page, 32),))]
