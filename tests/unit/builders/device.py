# SPDX-License-Identifier: MIT
"""A block device in a file, and what EROFS's own programs and the kernel make of it."""

import mmap
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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


@dataclass(frozen=True)
class Devices:
    """A primary device and extra ones with the numbers of their first blocks."""

    primary: Device
    extra: tuple[tuple[int, Device], ...]

    @property
    def paths(self) -> list[Path]:
        return [device.path for _, device in self.extra]

    def put(self, header: Header) -> None:
        self.primary.put(header)
        for _, device in self.extra:
            device.content.tofile(device.path)

    def expected(self, blocks: Blocks, size_bytes: int) -> bytes:
        return b"".join(self._page(int(b)) for b in blocks)[:size_bytes]

    def _page(self, block: int) -> bytes:
        if block == HOLE:
            return bytes(BLOCK_BYTES)
        for start, device in ((0, self.primary), *self.extra):
            if start <= block < start + len(device.content):
                return bytes(device.content[block - start])
        raise IndexError(block)


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


def read_pages(directory: Path) -> Mapping[str, bytes]:
    """Return what the files hold, each page read on its own, as with DAX.

    With readahead, the kernel reads some pages from the wrong one of several devices (see memfs/erofs.py).
    """
    return {p.name: _read_pages(p) for p in directory.iterdir()}


def _read_pages(path: Path) -> bytes:
    if not (size := path.stat().st_size):
        return b""
    with path.open("rb") as f, mmap.mmap(f.fileno(), size, prot=mmap.PROT_READ) as view:
        view.madvise(mmap.MADV_RANDOM)
        return view[:]


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
def mounted(path: Path, where: Path, extra: Sequence[Path] = ()) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    with ExitStack() as loops:
        how = "ro" if path.is_block_device() else "ro,loop"
        options = ",".join([how, *(f"device={loops.enter_context(_loop(e))}" for e in extra)])
        command = ["mount", "-t", "erofs", "-o", options, str(path), str(where)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        try:
            yield where
        finally:
            subprocess.run(["umount", where], check=True, timeout=60)


@contextmanager
def _loop(path: Path) -> Iterator[str]:
    command = ["losetup", "--find", "--show", "--read-only", str(path)]
    name = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "--detach", name], check=True, timeout=60)
