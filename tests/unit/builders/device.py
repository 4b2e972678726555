# SPDX-License-Identifier: MIT
"""A block device in a file, and what EROFS's own programs and the kernel make of it."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memfs.erofs import BLOCK_BYTES, HOLE, Blocks, Header


def as_blocks(*numbers: int) -> Blocks:
    return np.array(numbers, np.uint32)


@dataclass(frozen=True)
class Device:
    """A device whose blocks all differ."""

    path: Path
    content: NDArray[np.uint8]

    @classmethod
    def of_size(cls, path: Path, blocks: int, seed: int = 0) -> "Device":
        content = np.random.default_rng(seed).integers(0, 256, (blocks, BLOCK_BYTES), np.uint8)
        return cls(path, content)

    def put(self, header: Header) -> None:
        """Write everything to the file; afterwards the content has the header, too."""
        self.content[0] = np.frombuffer(header.block0, np.uint8)
        layout = header.layout
        self.content[layout.meta_start_block : layout.meta_end_block].reshape(-1)[:] = header.metadata
        self.content.tofile(self.path)

    def expected(self, blocks: Blocks, size_bytes: int) -> bytes:
        """Return what a file holds, as the format says."""
        pages = [bytes(BLOCK_BYTES) if b == HOLE else self.content[b].tobytes() for b in blocks]
        return b"".join(pages)[:size_bytes]


def fsck(path: Path, *options: str) -> tuple[bool, str]:
    done = subprocess.run(["fsck.erofs", *options, path], capture_output=True, text=True, timeout=60)
    text = done.stdout + done.stderr
    # fsck.erofs 1.5 exits with 0 although it says that the checksum is wrong
    return done.returncode == 0 and "<E>" not in text, text


def dump(path: Path, *options: str) -> str:
    command = ["dump.erofs", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def read_tree(directory: Path) -> Mapping[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def why_not_mounted() -> str:
    """Return why this machine cannot mount an EROFS image; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    filesystems = Path("/proc/filesystems")
    if "\terofs\n" not in filesystems.read_text():
        subprocess.run(["modprobe", "-q", "erofs"], stdin=subprocess.DEVNULL)
        if "\terofs\n" not in filesystems.read_text():
            return "the kernel has no erofs"
    return "" if Path("/dev/loop-control").exists() else "no loop devices"


@contextmanager
def mounted(path: Path, where: Path) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    command = ["mount", "-t", "erofs", "-o", "loop,ro", str(path), str(where)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True, timeout=60)
