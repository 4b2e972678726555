# SPDX-License-Identifier: MIT
"""Keeping the containers' page frames: the map of where each page of a dump lies, made while the tasks are stopped.

CRIU writes the pages themselves to ``/dev/null``, by links that were put into the image directory before the dump; it
says in its pagemaps which pages would have been in which file. Here the frames of these pages are looked up, and the
few that do not lie in range R are copied.
"""

import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from memfs import erofs, frames, hotplug, prefix
from memfs.erofs import BLOCK_BYTES
from memfs.frames import Copies, FrameMap, Gap, GapFull, Piece
from memfs.pagemap import Pfns, Runs
from memfs.ranges import Range
from upgrade import pagemaps, ranges
from upgrade.dump import memory, sampling
from upgrade.dump.memory import Memory
from upgrade.dump.spill import NoRoom, Spill
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.pagemaps import PAGE_BYTES, Pagemap

NOWHERE = "/dev/null"
MOST_ON_STORE = 1024  # pages
SPARE_LINKS = 64
COPY_AT_ONCE_BYTES = 4 << 20
FIND_MOVER = "find out what moves them (compaction, NUMA balancing, KSM), or copy: --pages copy"


@dataclass(frozen=True, slots=True)
class Stopped:
    """A container whose tasks are stopped and whose images lie in ``directory``."""

    name: str
    number: int
    directory: Path
    root_pid: int
    pids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Kept:
    """How a container's pages go across.

    Of those in place ``pages`` are in the frame map, ``shared`` of them are there already for another process, and
    ``stragglers`` had to be copied; ``files`` are its images that are in the map.
    """

    in_place: bool = True
    pages: int = 0
    shared: int = 0
    stragglers: int = 0
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _File:
    """One ``pages-N.img`` to be: its name in the frame map, whose it is and where its pages are."""

    container: Stopped
    image: str
    runs: Runs
    pages: int
    memory: Memory

    @classmethod
    def of(cls, container: Stopped, pages: Pagemap, memory: Memory) -> "_File":
        runs = Runs(np.frombuffer(pages.starts, np.int64), np.frombuffer(pages.counts, np.int64))
        return cls(container, pages.file, runs, runs.pages, memory)

    @property
    def size_bytes(self) -> int:
        return self.pages * PAGE_BYTES

    @property
    def name(self) -> str:
        return file_name(self.container.number, self.image)

    @property
    def link(self) -> Path:
        return self.container.directory / self.image


def file_name(container: int, image: str) -> str:
    """Return the name that an image has in the frame map."""
    return f"{container}-{image}"


def prepare(directory: Path, files: int) -> None:
    """Have CRIU write the pages of a dump to nowhere; if it makes more files than ``files``, these are real ones."""
    for number in range(1, files + SPARE_LINKS + 1):
        (directory / f"pages-{number}.img").symlink_to(NOWHERE)


class Frames:
    """The frame map of all containers that keep their frames."""

    def __init__(self, host: Host, spans: Sequence[Range], target: Path) -> None:
        """Prepare to write the map to the file ``target``."""
        self.host = host
        self.spans = tuple(spans)
        self.target = target
        self.stack = ExitStack()
        self.files: list[_File] = []
        self.made: FrameMap | None = None
        self.spill: Spill | None = None
        self.pieces: list[Piece] = []
        if spans:
            self._number()

    def _number(self) -> None:
        """Number the blocks of all ranges as those of one device."""
        spans = self.spans
        self.extra = erofs.chain(
            spans[0].size_bytes // BLOCK_BYTES,
            [(s.size_bytes // BLOCK_BYTES, f"{s.start_bytes:#x}") for s in spans[1:]],
        )
        self.device_blocks = spans[0].size_bytes // BLOCK_BYTES
        firsts = (0, *(e.first_block for e in self.extra))
        for span, first in zip(spans, firsts, strict=True):
            for online in hotplug.online_spans(span, self.host.root):
                at = first + (online.start_bytes - span.start_bytes) // BLOCK_BYTES
                self.pieces.append(Piece(online, at))
        if not self.pieces:
            raise UpgradeError(
                "no part of the frames ranges is online any more", hint="find out who took it offline (dmesg)"
            )
        self.gap_bytes = min(p.first_block for p in self.pieces) * BLOCK_BYTES

    def __enter__(self) -> "Frames":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()
        while error is not None:
            # an error on its way keeps the map's file open with it, and then its file system cannot be unmounted
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__

    def capture(self, containers: Iterable[Stopped]) -> dict[int, Kept]:
        """Make the map and write it; return by number how each container goes across.

        A container with more stragglers than there is room for has all its pages copied beside its images.

        :raises UpgradeError: if there is no room for that either
        """
        stopped = list(containers)
        kept = {c.number: Kept() for c in stopped}
        for container in stopped:
            self._open(container)
        while True:
            found = self._look()
            try:
                made = self._write(found)
                break
            except (GapFull, prefix.GapTooSmall) as e:
                if not self.files:
                    raise UpgradeError(str(e), subject=str(self.target)) from e
                weight = self._outside(found) if isinstance(e, GapFull) else self._pages()
                worst = max(stopped, key=lambda c: weight.get(c.number, -1))
                self._copy(worst)
                kept[worst.number] = Kept(in_place=False)
        self._clean_up(stopped)
        return kept | {number: self._kept(number, made) for number in self._pages()}

    def _kept(self, number: int, made: FrameMap) -> Kept:
        """Return how a container in the map goes across."""
        files, images = zip(
            *((f, i) for f, i in zip(self.files, made.images, strict=True) if f.container.number == number),
            strict=True,
        )
        pages = sum(f.pages for f in files)
        different = pages
        if len(files) > 1:
            blocks = np.zeros(max(int(i.blocks.max()) for i in images) + 1, np.bool_)
            for image in images:
                blocks[image.blocks] = True
            different = int(np.count_nonzero(blocks))
        stragglers = sum(len(i.stragglers) for i in images)
        return Kept(True, pages, pages - different, stragglers, tuple(f.image for f in files))

    def sample(self, target: Path, *, everything: bool) -> None:
        """Write digests of what lies in the frames to the file ``target``."""
        sampling.take({f.name: (f.runs, f.memory) for f in self.files}, target, everything=everything)

    def moved(self) -> bool:
        """Look again at every frame; if one has moved the map is written anew and has to be looked at again.

        :raises UpgradeError: if there is no room for the pages that lie outside now
        """
        if self.made is None:
            return False
        found = self._look()
        same = self.spill is None or not self.spill.moved()
        if same and not any(
            len(image.outdated(now, self.pieces)) for image, now in zip(self.made.images, found, strict=True)
        ):
            return False
        try:
            self._write(found)
        except (GapFull, prefix.GapTooSmall) as e:
            raise UpgradeError(f"page frames moved out of the ranges: {e}", hint=FIND_MOVER) from e
        return True

    def _open(self, container: Stopped) -> None:
        """Open what a container's pagemaps are about, except for what CRIU itself has copied."""
        maps = pagemaps.read_all(container.directory)
        kept = [m for m in maps if m.pages and (container.directory / m.file).is_symlink()]
        opened = self.stack.enter_context(memory.opened(self.host, container.root_pid, container.pids, kept))
        self.files += [_File.of(container, m, where) for m, where in zip(kept, opened, strict=True)]

    def _look(self) -> list[Pfns]:
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            return list(pool.map(lambda f: f.memory.frames(f.runs), self.files))

    def _outside(self, found: Sequence[Pfns]) -> dict[int, int]:
        """Return by container how many of its pages do not lie in R."""
        count: dict[int, int] = {}
        for file, pfns in zip(self.files, found, strict=True):
            outside = np.count_nonzero(frames.classify(pfns, self.pieces) == frames.NOWHERE)
            count[file.container.number] = count.get(file.container.number, 0) + int(outside)
        return count

    def _pages(self) -> dict[int, int]:
        """Return by container how many pages it has in the map."""
        count: dict[int, int] = {}
        for file in self.files:
            count[file.container.number] = count.get(file.container.number, 0) + file.pages
        return count

    def _write(self, found: Sequence[Pfns]) -> FrameMap:
        """Build the map and write it, with the stragglers' contents."""
        planned = prefix.layout(
            [erofs.File(f.name, f.size_bytes) for f in self.files],
            self.gap_bytes,
            self.device_blocks,
            self.extra,
        )
        # Those few travel on the range for metadata; what is more has its room in the ranges for frames.
        gap = Gap(planned.gap.start_block, min(planned.gap.blocks, MOST_ON_STORE))
        try:
            made, spill = frames.build(found, self.pieces, gap), None
        except GapFull as e:
            made, spill = self._spill(found, e.needed)
        try:
            out = prefix.create(self.target, planned, 0 if spill else len(made.copies.blocks))
        except OSError as e:
            size = (planned.gap.start_block + len(made.copies.blocks)) * BLOCK_BYTES
            raise UpgradeError(
                f"the frame map with {len(made.copies.blocks)} copied pages, {size >> 20} MiB, cannot be written: {e}",
                subject=str(self.target),
                hint="make the range for metadata larger (memmap=)",
            ) from e
        with out:
            names = [f.name for f in self.files]
            out.write(dict(zip(names, (i.blocks for i in made.images), strict=True)), volume=ranges.VOLUME)
            if spill is None:
                self._copy_stragglers(made.copies, lambda block, count: [out.pages(block, count)])
        self.made, self.spill = made, spill
        return made

    def _spill(self, found: Sequence[Pfns], needed: int) -> tuple[FrameMap, Spill]:
        """Build the map with stragglers that are copied into memory of ours, where that lies in the ranges.

        :raises GapFull: if the ranges have no room for them either
        """
        beyond = Gap(self.device_blocks + sum(e.blocks for e in self.extra), needed)
        made = frames.build(found, self.pieces, beyond)
        try:
            spill = Spill(needed, self.pieces)
        except NoRoom as e:
            raise GapFull(needed, e.found) from e
        self._copy_stragglers(
            made.copies, lambda block, count: spill.pages(block - beyond.start_block, count)
        )
        for image in made.images:
            image.blocks[image.stragglers] = spill.blocks[image.blocks[image.stragglers] - beyond.start_block]
        return made, spill

    def _copy_stragglers(self, copies: Copies, pages: Callable[[int, int], Iterable[memoryview]]) -> None:
        """Copy pages to the blocks that the map has for them, neighbours together.

        :param pages: returns the memory of so many blocks from a block on, in pieces
        """
        edges = np.searchsorted(copies.images, np.arange(len(self.files) + 1)).tolist()
        for file, start, end in zip(self.files, edges[:-1], edges[1:], strict=True):
            if start == end:
                continue
            addresses = file.runs.addresses(copies.pages[start:end])
            firsts = np.flatnonzero(np.diff(addresses, prepend=-1) != PAGE_BYTES)
            counts = np.diff(firsts, append=end - start)
            blocks = copies.blocks[start:end][firsts]
            with file.memory.reading() as read:
                for address, block, count in zip(
                    addresses[firsts].tolist(), blocks.tolist(), counts.tolist(), strict=True
                ):
                    for piece in pages(block, count):
                        read(address, piece)
                        address += len(piece)

    def _copy(self, container: Stopped) -> None:
        """Copy all pages of a container beside its images; it is no part of the map any more."""
        files = [f for f in self.files if f.container.number == container.number]
        size = sum(f.size_bytes for f in files)
        state = os.statvfs(container.directory)
        if size > state.f_bavail * state.f_frsize:
            raise UpgradeError(
                f"too many of its pages lie outside the frames range, and {size >> 20} MiB to copy them all do not "
                "fit on the range for metadata",
                subject=container.name,
                hint="leave gathering on (no --no-gather), make the ranges larger (memmap=), or preserve less",
            )
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(_copy_file, files))
        self.files = [f for f in self.files if f.container.number != container.number]

    def _clean_up(self, containers: Iterable[Stopped]) -> None:
        """Take the links away. In the new kernel there are files of the map in their places."""
        for container in containers:
            for left in container.directory.glob("pages-*.img"):
                if left.is_symlink():
                    left.unlink()


def _copy_file(file: _File) -> None:
    file.link.unlink()
    buffer = memoryview(bytearray(COPY_AT_ONCE_BYTES))
    with file.link.open("xb") as out, file.memory.reading() as read:
        for start, pages in zip(file.runs.starts.tolist(), file.runs.counts.tolist(), strict=True):
            for at in range(start, start + pages * PAGE_BYTES, COPY_AT_ONCE_BYTES):
                part = buffer[: min(COPY_AT_ONCE_BYTES, start + pages * PAGE_BYTES - at)]
                read(at, part)
                out.write(part)
