# SPDX-License-Identifier: MIT
"""A parent that never was: CRIU is told that an earlier dump has every page that did not change since.

The pages of a container that keeps its frames are needed by nobody, but CRIU moves each of them through a pipe to
nowhere. What a parent has it leaves out (``PE_PARENT``, criu/mem.c, generate_iovs()). So the kernel is asked to note
from now on what changes (Documentation/admin-guide/mm/soft-dirty.rst), and a parent is made that claims to have
everything. After the dump the pagemaps are written again as if CRIU had moved all pages, and the parent goes away.

Nothing depends on what the kernel noted: a page that changed goes through the pipe, one that did not is left out, and
both are found in their frames. So it may begin before the freeze. It cannot be taken back and need not be: a task has
one more minor fault at its next write to a page, and what somebody else wanted to know of changes begins anew.
"""

import shutil
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from upgrade import pagemaps
from upgrade.criu import image_messages
from upgrade.dump import frames
from upgrade.host import Host
from upgrade.pagemaps import PAGE_BYTES, PE_LAZY, PE_PARENT, PE_PRESENT

NAME = "unchanged"
LINK = "parent"  # criu/include/image.h, CR_PARENT_LINK; CRIU makes it
# With less the pipe is faster than writing the pagemap again.
FEW_BYTES = 16 << 20
# Everything that a task may map (CRIU knows 47 bits), in counts that have 32 bits before CRIU 4.2.
_ADDRESSES = 1 << 47
_MOST_PAGES = 1 << 31
# Made at the end of time: no task is younger (criu/mem.c, detect_pid_reuse()). Microseconds.
_LAST = 1 << 62
_CLEAR_SOFT_DIRTY = "4"
# criu/include/magic.h
_INVENTORY_MAGIC = struct.pack("<I", 0x58313116)
_MM_MAGIC = struct.pack("<II", pagemaps.IMG_COMMON_MAGIC, 0x57492820)
# uapi/linux/mman.h; criu/include/image.h
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_LOCKED, _MAP_HUGETLB = 0x2, 0x20, 0x2000, 0x40000
_VMA_VSYSCALL, _VMA_VDSO, _VMA_VVAR = 1 << 2, 1 << 3, 1 << 12


class Parent:
    """The parent of one container's dump; its tasks are those that are worth it."""

    def __init__(self, host: Host, images: Path) -> None:
        self.host = host
        self.images = images
        self.tasks: list[int] = []
        """The numbers that CRIU knows them by."""

    def make(self, root_pid: int, pids: Iterable[int]) -> None:
        """Make the parent and have the kernel note what changes; best just before the freeze."""
        chosen = list(self._worth_it(root_pid, pids))
        if not chosen:
            return
        directory = self.images / NAME
        directory.mkdir()
        inventory = image_messages("inventory_pb2").inventory_entry(img_version=1, dump_uptime=_LAST)
        pagemaps.write_messages(directory / "inventory.img", _INVENTORY_MAGIC, [inventory])
        everything = directory / "everything.img"
        spans = range(0, _ADDRESSES, _MOST_PAGES * PAGE_BYTES)
        pagemaps.write(everything, "pages-0.img", [(start, _MOST_PAGES, PE_PRESENT) for start in spans])
        image_messages("mm_pb2")  # imported here, and not while the tasks stand still
        for number, pid in chosen:
            try:
                self.host.write(f"/proc/{pid}/clear_refs", _CLEAR_SOFT_DIRTY)
            except OSError:
                continue  # it has ended; whatever else: it is dumped as a whole
            (directory / f"pagemap-{number}.img").symlink_to(everything.name)
            self.tasks.append(number)

    def _worth_it(self, root_pid: int, pids: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Return of each task with many pages in memory its number in the namespace of the tree's root, and its PID.

        What is swapped out has no frame: through the pipe it comes back to memory.
        """
        level = len(self._status(root_pid).get("NSpid", "").split()) - 1
        for pid in pids:
            status = self._status(pid)
            numbers = status.get("NSpid", "").split()
            many = _size(status, "RssAnon") >= FEW_BYTES and not _size(status, "VmSwap")
            if many and len(numbers) > level >= 0:
                yield int(numbers[level]), pid

    def _status(self, pid: int) -> dict[str, str]:
        lines = self.host.read_or(f"/proc/{pid}/status", "").splitlines()
        return {name: value for name, _, value in (line.partition(":") for line in lines)}

    def options(self, options: Any) -> None:
        """Have CRIU take it for the parent."""
        if self.tasks:
            options.track_mem = True
            options.parent_img = NAME

    def dissolve(self) -> None:
        """Make the images those of a dump without a parent, while CRIU holds the tasks.

        :raises UpgradeError: if CRIU wrote what cannot be understood
        """
        for number in self.tasks:
            path = self.images / f"pagemap-{number}.img"
            if path.exists():  # it may have ended before the freeze
                _flatten(path)
        (self.images / LINK).unlink(missing_ok=True)
        if (self.images / NAME).exists():
            shutil.rmtree(self.images / NAME)


def _flatten(path: Path) -> None:
    """Say of one task's pages that they are all there."""
    file, entries = pagemaps.read(path)
    found = list(entries)
    if not any(flags & PE_PARENT for _, _, flags in found):
        return
    vmas = _vmas(path.with_name(path.name.replace("pagemap-", "mm-")))
    pagemaps.write(path, file, merged(present(found, lazy_edges(vmas))))
    pages = path.with_name(file)
    if not pages.is_symlink():  # there were too few links: its pages are all to be found in their frames
        pages.unlink(missing_ok=True)
        pages.symlink_to(frames.NOWHERE)


def _size(status: dict[str, str], name: str) -> int:
    words = status.get(name, "").split()
    return int(words[0]) << 10 if words else 0


def _vmas(path: Path) -> Sequence[Any]:
    (message,) = pagemaps.messages(path, _MM_MAGIC)
    vmas: Sequence[Any] = image_messages("mm_pb2").mm_entry.FromString(message).vmas
    return vmas


def lazy_edges(vmas: Iterable[Any]) -> list[int]:
    """Return where begins and ends, in turn, what CRIU lets a restore delay.

    criu/include/vma.h, vma_entry_can_be_lazy(). That it means to leave out the stacks' pages in use has no effect:
    criu/mem.c, is_stack() compares the wrong bits.
    """
    edges: list[int] = []
    for start, end in sorted((vma.start, vma.end) for vma in vmas if _can_be_lazy(vma)):
        if edges and start <= edges[-1]:
            edges[-1] = max(end, edges[-1])
        else:
            edges += (start, end)
    return edges


def _can_be_lazy(vma: Any) -> bool:
    wanted = _MAP_PRIVATE | _MAP_ANONYMOUS
    refused = _MAP_LOCKED | _MAP_HUGETLB
    special = _VMA_VSYSCALL | _VMA_VDSO | _VMA_VVAR
    return vma.flags & (wanted | refused) == wanted and not vma.status & special


def present(entries: Iterable[tuple[int, int, int]], edges: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Return the entries (address, pages, flags) of a pagemap as if what the parent has were there."""
    for address, pages, flags in entries:
        if not flags & PE_PARENT:
            yield address, pages, flags
            continue
        end = address + pages * PAGE_BYTES
        while address < end:
            index = bisect_right(edges, address)
            stop = min([end, *edges[index : index + 1]])
            yield address, (stop - address) // PAGE_BYTES, PE_PRESENT | (PE_LAZY if index % 2 else 0)
            address = stop


def merged(entries: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Return entries with neighbours of equal flags as one."""
    before: tuple[int, int, int] | None = None
    for address, pages, flags in entries:
        if before is not None:
            if flags == before[2] and address == before[0] + before[1] * PAGE_BYTES:
                before = before[0], before[1] + pages, flags
                continue
            yield before
        before = address, pages, flags
    if before is not None:
        yield before
