# SPDX-License-Identifier: MIT
"""Digests of what lies in the frames, for the new kernel to compare: of a random choice, or of everything."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from memfs import samples
from memfs.pagemap import PAGE_BYTES, Runs
from upgrade.dump.memory import Memory

# of 128 KiB each
SAMPLED_CHUNKS = 128


def take(files: Mapping[str, tuple[Runs, Memory]], target: Path, *, everything: bool) -> None:
    """Write the digests of files of the frame map, given by where their pages are, to the file ``target``."""
    pages = {name: runs.pages for name, (runs, _) in files.items()}
    chosen = samples.every(pages) if everything else samples.choose(pages, SAMPLED_CHUNKS)

    def read(name: str, first: int, count: int) -> memoryview:
        return _read(*files[name], first, count)

    samples.save(samples.take(read, pages, chosen, os.cpu_count() or 1), target)


def _read(runs: Runs, memory: Memory, first: int, count: int) -> memoryview:
    """Return the contents of pages of a file."""
    contents = memoryview(bytearray(count * PAGE_BYTES))
    addresses = runs.addresses(np.arange(first, first + count, dtype=np.int64))
    starts = np.flatnonzero(np.diff(addresses, prepend=-1) != PAGE_BYTES)
    ends: Sequence[int] = [*starts[1:].tolist(), count]
    with memory.reading() as read:
        for start, end in zip(starts.tolist(), ends, strict=True):
            read(int(addresses[start]), contents[start * PAGE_BYTES : end * PAGE_BYTES])
    return contents
