# SPDX-License-Identifier: MIT
"""Dumps without pages of real processes, and physical memory to look their frames up in.

``/dev/mem`` cannot be read, so what lies in a frame is what a process sees through it: entries of ``/proc/PID/pagemap``
read here on their own, and ``/proc/PID/mem``.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pycriu import images

from builders.device import fsck
from memfs.ranges import Range
from upgrade.dump.frames import Stopped
from upgrade.host import Host

PAGE = 4096
BLOCK = 1 << 20
"""The size of a memory block: smaller than real ones, so that a process has pages in several."""
LIBC = ctypes.CDLL(None, use_errno=True)

Area = tuple[int, int]
"""Address and number of pages."""


def frames_of(pid: int | str, address: int, pages: int) -> list[int]:
    """Return the frames of an area; 0 where there is none."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        found = struct.unpack(f"<{pages}Q", os.pread(fd, 8 * pages, address // PAGE * 8))
    finally:
        os.close(fd)
    return [entry & (1 << 55) - 1 if entry >> 63 else 0 for entry in found]


def contents_of(pid: int | str, address: int, pages: int) -> bytes:
    """Return what an area holds."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return os.pread(fd, pages * PAGE, address)
    finally:
        os.close(fd)


def write_pagemap(
    directory: Path, name: str, pages_id: int, areas: Iterable[Area], *, link: bool = True
) -> None:
    """Write what CRIU does for a task or an object whose pages it writes to nowhere."""
    entries = [{"pages_id": pages_id}]
    entries += [{"vaddr": address, "nr_pages": pages, "flags": 1 << 2} for address, pages in areas]
    with (directory / f"pagemap-{name}.img").open("wb") as f:
        images.dump({"magic": "PAGEMAP", "entries": entries}, f)
    if link:
        (directory / f"pages-{pages_id}.img").symlink_to("/dev/null")


def stopped(directory: Path, *pids: int, number: int = 0) -> Stopped:
    """Return a container of some processes."""
    directory.mkdir(exist_ok=True)
    return Stopped(f"container {number}", number, directory, pids[0], pids)


@dataclass
class Physical:
    """Physical memory of which some blocks are online, as sysfs shows it; the processes are the real ones."""

    root: Path
    held: dict[int, bytes] = field(default_factory=dict)
    """What lies in the frames that were looked at."""

    def __post_init__(self) -> None:
        self.state.mkdir(parents=True)
        (self.root / "proc").symlink_to("/proc")
        (self.state / "block_size_bytes").write_text(f"{BLOCK:x}\n")

    @property
    def host(self) -> Host:
        return Host(self.root)

    @property
    def state(self) -> Path:
        return self.root / "sys/devices/system/memory"

    def see(self, pid: int | str, address: int, pages: int) -> set[int]:
        """Look at an area; return the numbers of the blocks that its frames lie in."""
        contents = contents_of(pid, address, pages)
        blocks = set()
        for page, pfn in enumerate(frames_of(pid, address, pages)):
            if pfn:
                self.held[pfn] = contents[page * PAGE : (page + 1) * PAGE]
                blocks.add(pfn * PAGE // BLOCK)
        return blocks

    def online(self, blocks: Iterable[int], gap_blocks: int = 4) -> Range:
        """Make a range with these blocks, and with blocks before them that are not online."""
        chosen = sorted(blocks)
        for number in chosen:
            (self.state / f"memory{number}").mkdir(exist_ok=True)
            (self.state / f"memory{number}" / "state").write_text("online\n")
        start = (chosen[0] - gap_blocks) * BLOCK
        return Range(start, (chosen[-1] + 1) * BLOCK - start)

    def read_back(self, prefix: Path, spans: Iterable[Range], scratch: Path) -> dict[str, bytes]:
        """Return what the new kernel finds in the files of the map: EROFS's own program reads them."""
        devices = []
        for number, span in enumerate(spans):
            device = scratch / f"device-{number}"
            with device.open("wb") as f:
                f.truncate(span.size_bytes)
                for pfn, content in self.held.items():
                    if span.start_bytes <= pfn * PAGE < span.end_bytes:
                        f.seek(pfn * PAGE - span.start_bytes)
                        f.write(content)
                if number == 0:
                    f.seek(0)
                    f.write(prefix.read_bytes())
            devices.append(device)
        out = scratch / "out"
        options = [f"--device={d}" for d in devices[1:]]
        good, text = fsck(devices[0], *options, "--overwrite", f"--extract={out}")
        assert good, text
        for device in devices:
            device.unlink()
        return {p.name: p.read_bytes() for p in out.iterdir()}
