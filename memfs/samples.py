# SPDX-License-Identifier: MIT
"""Whether page frames survived: digests of chunks of ``pages-N.img``, taken in the old kernel, compared in the new.

A chunk is 128 KiB (32 pages; a file's last one may be shorter), its digest XXH3 with 64 bits: 64 GiB of files have
4 MiB of digests. Either all chunks are taken or a random choice of them: what destroys frames (a
kernel that ignores ``memmap=``, firmware) destroys many at once. Not against an attacker.

Both ways read in threads. Imported in the new kernel: nothing heavy.
"""

import os
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import xxhash

PAGE_BYTES = 4096
# python-xxhash 4 keeps the interpreter's lock for up to 64 KiB: threads would wait for each other
CHUNK_PAGES = 32
CHUNK_BYTES = CHUNK_PAGES * PAGE_BYTES
MOST_CHUNKS = 1024  # of a container, without being asked for more: 128 MiB

# Numbers of a file's chunks, ascending.
Chunks: TypeAlias = Sequence[int]
# Returns the contents of a file's pages: name, first page, number of pages.
Reader: TypeAlias = Callable[[str, int, int], "bytes | bytearray | memoryview"]

_AT_ONCE = 8  # chunks that follow one another and are read in one go: 1 MiB
_SHARE = 512  # chunks that a thread works off: 64 MiB

_MAGIC = b"SUSAMPL1"
_HEAD = struct.Struct("<8sI")  # magic, files
_FILE = struct.Struct("<HQQB")  # bytes of the name, pages, chunks taken, whether these are all
_ALL, _SOME = 1, 0


class NoSamples(Exception):
    """The file is damaged or none of ours."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The digests of a file's chunks."""

    pages: int
    chunks: Chunks
    digests: "array[int]"


Samples: TypeAlias = Mapping[str, Sampled]


@dataclass(frozen=True, slots=True)
class Damage:
    """Pages of a file that are not what they were: the first of each run, and their number."""

    name: str
    runs: tuple[tuple[int, int], ...]
    reason: str = "other contents"

    @property
    def pages(self) -> int:
        """Return how many pages are concerned; a chunk with one wrong byte counts as a whole."""
        return sum(count for _, count in self.runs)

    def __str__(self) -> str:
        where = ", ".join(f"{first} to {first + count - 1}" for first, count in self.runs[:4])
        more = f" and {len(self.runs) - 4} more runs" if len(self.runs) > 4 else ""
        return (
            f"{self.name}: {self.reason}, pages {where}{more}" if self.runs else f"{self.name}: {self.reason}"
        )


def every(files: Mapping[str, int]) -> dict[str, Chunks]:
    """Return all chunks of files, given as numbers of pages by name."""
    return {name: range(_count(pages)) for name, pages in files.items()}


def choose(files: Mapping[str, int], most: int = MOST_CHUNKS, seed: int | None = None) -> dict[str, Chunks]:
    """Return up to ``most`` random chunks of files, given as numbers of pages by name.

    At least one of each file that has pages, even if there are more of them than ``most``; a file with few chunks is
    taken as a whole.
    """
    counts = {name: _count(pages) for name, pages in files.items()}
    total = sum(counts.values())
    if total <= most:
        return every(files)
    import random  # not needed in the new kernel, and it takes others along

    dice = random.Random(seed)
    chosen = {name: {dice.randrange(count)} if count else set() for name, count in counts.items()}
    left = max(0, most - sum(map(len, chosen.values())))
    places = iter(sorted(dice.sample(range(total), min(left, total))))
    place = next(places, total)
    start = 0
    for name, count in counts.items():
        while place < start + count:
            chosen[name].add(place - start)
            place = next(places, total)
        start += count
    return {name: sorted(numbers) for name, numbers in chosen.items()}


def take(
    read: Reader, files: Mapping[str, int], chosen: Mapping[str, Chunks], threads: int
) -> dict[str, Sampled]:
    """Return the digests of chosen chunks.

    :param read: is called from several threads, for up to 1 MiB at a time
    :param files: numbers of pages by name
    :raises ValueError: if ``read`` returns too few or too many bytes
    """
    shares = [(name, some) for name, chunks in chosen.items() for some in _shares(chunks)]
    result = {name: Sampled(files[name], chosen[name], array("Q")) for name in chosen}
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        work = (partial(_take, read, name, files[name], some) for name, some in shares)
        for (name, _), digests in zip(shares, pool.map(lambda job: job(), work), strict=True):
            result[name].digests.extend(digests)
    return result


def verify(directory: Path, samples: Samples, threads: int) -> list[Damage]:
    """Compare the files of a directory with the digests, return what differs in the order of ``samples``.

    The files are read and not mapped: a frame that is in several files (fork shares it) may be mapped for one of
    them only, else Linux complains (fs/dax.c, dax_associate_entry(): a WARNING, and the kernel is tainted).
    """
    shares = [(name, start) for name, s in samples.items() for start in range(0, len(s.chunks) or 1, _SHARE)]
    found: dict[str, Damage] = {}
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        work = (partial(_verify, directory / name, samples[name], start) for name, start in shares)
        for (name, _), (reason, runs) in zip(shares, pool.map(lambda job: job(), work), strict=True):
            if reason:
                before = found[name].runs if name in found else ()
                found[name] = Damage(name, _join([*before, *runs]), reason)
    return list(found.values())


def save(samples: Samples, path: Path) -> None:
    """Write digests to a file: 8 bytes a chunk, 16 if not all of a file's chunks were taken."""
    with path.open("wb") as f:
        f.write(_HEAD.pack(_MAGIC, len(samples)))
        for name, sampled in samples.items():
            encoded = name.encode()
            whole = len(sampled.chunks) == _count(sampled.pages)
            f.write(_FILE.pack(len(encoded), sampled.pages, len(sampled.chunks), _ALL if whole else _SOME))
            f.write(encoded)
            if not whole:
                f.write(_little(array("Q", sampled.chunks)))
            f.write(_little(sampled.digests))
        f.flush()
        os.fsync(f.fileno())


def load(path: Path) -> dict[str, Sampled]:
    """Read digests from a file; whether it is the one that was written, its checksum must tell.

    :raises NoSamples: if it is none, or incomplete
    """
    view = memoryview(path.read_bytes())

    def cut(size: int) -> memoryview:
        nonlocal view
        if len(view) < size:
            raise NoSamples(f"{path} ends too early")
        piece, view = view[:size], view[size:]
        return piece

    magic, files = _HEAD.unpack(cut(_HEAD.size))
    if magic != _MAGIC:
        raise NoSamples(f"{path} holds no samples")
    found = {}
    for _ in range(files):
        length, pages, count, kind = _FILE.unpack(cut(_FILE.size))
        name = str(cut(length), "utf-8", "replace")
        if (kind == _ALL and count != _count(pages)) or count > _count(pages):
            raise NoSamples(f"{path}: {count} chunks of {pages} pages of {name}")
        chunks = range(count) if kind == _ALL else _native(cut(8 * count))
        found[name] = Sampled(pages, chunks, _native(cut(8 * count)))
    if view:
        raise NoSamples(f"{path} has {len(view)} bytes too many")
    return found


def _digest(content: memoryview) -> int:
    # python-xxhash 3 (Debian 13) releases the interpreter's lock in update() only
    state = xxhash.xxh3_64()
    state.update(content)
    return int(state.intdigest())


def _count(pages: int) -> int:
    return -(-pages // CHUNK_PAGES)


def _shares(chunks: Chunks) -> Iterator[Chunks]:
    return (chunks[at : at + _SHARE] for at in range(0, len(chunks), _SHARE))


def _take(read: Reader, name: str, pages: int, chunks: Chunks) -> "array[int]":
    digests = array("Q")
    for first, count in _batches(chunks):
        start, end = first * CHUNK_PAGES, min((first + count) * CHUNK_PAGES, pages)
        with memoryview(read(name, start, end - start)) as content:
            if content.nbytes != (end - start) * PAGE_BYTES:
                raise ValueError(f"{name}: {content.nbytes} bytes of {end - start} pages from {start} on")
            for at in range(0, content.nbytes, CHUNK_BYTES):
                digests.append(_digest(content[at : at + CHUNK_BYTES]))
    return digests


def _batches(chunks: Chunks) -> Iterator[tuple[int, int]]:
    """Yield runs of chunks that follow one another: the first, and how many."""
    for _, group in groupby(enumerate(chunks), lambda item: (item[1] - item[0], item[0] // _AT_ONCE)):
        numbers = [number for _, number in group]
        yield numbers[0], len(numbers)


def _verify(path: Path, sampled: Sampled, start: int) -> tuple[str, list[tuple[int, int]]]:
    """Compare a share of a file; return why it is damaged (empty if it is not) and which runs of pages."""
    size = sampled.pages * PAGE_BYTES
    whole = [(0, sampled.pages)] if sampled.pages else []
    try:
        with path.open("rb") as f:
            found = os.fstat(f.fileno()).st_size
            if found != size:
                return f"{found} bytes instead of {size}", whole
            if not size:
                return "", []
            runs = _compare(f.fileno(), sampled, start)
    except OSError as e:
        return f"{e.strerror}", whole
    return ("other contents" if runs else ""), runs


def _compare(fd: int, sampled: Sampled, start: int) -> list[tuple[int, int]]:
    runs = []
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for index in range(start, min(start + _SHARE, len(sampled.chunks))):
        number = sampled.chunks[index]
        size = min(CHUNK_BYTES, sampled.pages * PAGE_BYTES - number * CHUNK_BYTES)
        content = buffer[:size]
        if (
            os.preadv(fd, [content], number * CHUNK_BYTES) != size
            or _digest(content) != sampled.digests[index]
        ):
            runs.append((number * CHUNK_PAGES, size // PAGE_BYTES))
    return runs


def _join(runs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return runs, ascending, those that touch as one."""
    joined: list[tuple[int, int]] = []
    for first, count in runs:
        if joined and joined[-1][0] + joined[-1][1] >= first:
            before = joined.pop()
            first, count = before[0], max(first + count, sum(before)) - before[0]
        joined.append((first, count))
    return tuple(joined)


def _little(numbers: "array[int]") -> "array[int]":
    if sys.byteorder == "little":
        return numbers
    swapped = array("Q", numbers)
    swapped.byteswap()
    return swapped


def _native(data: memoryview) -> "array[int]":
    numbers = array("Q")
    numbers.frombytes(data)
    return _little(numbers)
