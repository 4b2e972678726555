# SPDX-License-Identifier: MIT
"""Choosing the ranges: M for metadata, and R for page frames on every NUMA node that runs programs.

::

    0     1 GiB            M                   head R                       end of the node
    | low | ordinary ... | store | ordinary ... | . | blocks of page frames | ordinary |

* R ends where a memory block ends and begins a head before one: only whole blocks come online, and the frame map is
  written to the head (``memfs/frames.py``).
* Behind R there is ordinary memory of its node. Without a table of nodes the kernel gives a node only to what lies
  below the end of its memory, and ``kmem`` refuses memory without one ("invalid node: -1").
* Ranges do not touch: the kernel makes one of neighbours in the memory map.
* M is the lowest: the tool takes the first range of the command line for it.
* Nothing lies in the first GiB, which boot loaders, the crash kernel and devices with short addresses want.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from memfs import ranges
from memfs.ranges import ALIGNMENT_BYTES, Range
from upgrade.errors import Refusal, UsageError
from upgrade.prepare.memory import Memory, Node, without

MIB = 1 << 20
# Documentation/mm/memory-model.rst: a section of sparse memory on x86-64
SECTION_BYTES = 128 * MIB
LOWEST_BYTES = 1 << 30
STORE_LEAST_BYTES = 256 * MIB
# Of R: twice what the frame map, images and copied pages take (upgrade.plan.FRAMES_SHARE)
STORE_SHARE = 1 / 32
# A struct page of 64 bytes for each page of R, in ordinary memory
PAGE_TABLE_SHARE = 1 / 64
DEFAULT_SHARE = 1 / 4
DEFAULT_FACTOR = 1.5
# One piece a node is better than more of them if it is this large a part
GOOD_SHARE = 0.75
# Of a node's RAM: the kernel wants memory of its own on every node
NODE_SHARE = 0.75


class _NoRoom(Exception):
    """The ranges cannot be placed in this memory."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A range and the node it lies on. ``head_bytes`` of it lie before its first memory block."""

    span: Range
    node: int
    head_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """What to set aside."""

    store: Placed
    frames: tuple[Placed, ...]
    warnings: tuple[str, ...] = ()

    @property
    def spans(self) -> tuple[Range, ...]:
        """Return all ranges by address: M is the first."""
        return (self.store.span, *sorted(placed.span for placed in self.frames))

    @property
    def frames_bytes(self) -> int:
        """Return how much of R can hold page frames."""
        return sum(placed.span.size_bytes - placed.head_bytes for placed in self.frames)


def parse_memory(text: str, ram_bytes: int) -> int:
    """Return what ``--memory`` asks for in bytes: ``8G``, ``512M``, ``25%`` (of all RAM).

    :raises UsageError: if it is neither
    """
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if percent and 0 < float(percent[1]) < 100:
        return int(ram_bytes * float(percent[1]) / 100)
    size = re.fullmatch(r"(\d+)\s*([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    if size and int(size[1]):
        return ranges.parse_size(f"{int(size[1])}{size[2]}")
    raise UsageError(
        f"neither a size nor a share of the RAM: {text!r}",
        subject="--memory",
        hint="for example 8G, 512M or 25%",
    )


def choose(memory: Memory, asked: int | None, slots: int = ranges.KASLR_RANGES) -> Layout:
    """Return what to set aside.

    :param asked: how much is to hold page frames, in bytes; None: a quarter of the RAM, or half as much again as the
        programs have now if that is more; less if the budget does not allow it
    :param slots: how many ranges the command line may get
    :raises Refusal: with figures, if there is no room or too little would be left
    """
    most = _most(memory)
    if most < memory.block_bytes:
        raise Refusal(
            f"has {_mib(memory.ram_bytes)}, the host itself needs {_mib(memory.host_bytes)} of it: there is no room "
            f"for {_mib(memory.block_bytes)} of page frames, as much again outside of them, and "
            f"{_mib(STORE_LEAST_BYTES)} of metadata",
            subject="this host",
            hint="add memory, or upgrade with --pages copy and a single memmap= range set by hand",
        )
    if asked is not None:
        return _exactly(memory, _up(asked, memory.block_bytes), most, slots)
    share = max(DEFAULT_SHARE * memory.ram_bytes, DEFAULT_FACTOR * memory.programs_bytes)
    wanted = min(most, _up(int(share), memory.block_bytes))
    found = _largest(memory, wanted, slots, split=False)
    if found is None or found.frames_bytes < GOOD_SHARE * wanted:
        found = _largest(memory, wanted, slots)
    if found is None:
        raise _no_place(memory)
    if found.frames_bytes < memory.programs_bytes:
        few = f"the ranges hold {_mib(found.frames_bytes)}, and programs have {_mib(memory.programs_bytes)} now: an "
        return Layout(found.store, found.frames, (few + "upgrade of all of them would be refused",))
    return found


def store_bytes(frames_bytes: int) -> int:
    """Return how large M is for so many bytes of page frames."""
    return max(STORE_LEAST_BYTES, _up(int(frames_bytes * STORE_SHARE), SECTION_BYTES))


def left_bytes(memory: Memory, layout: Layout) -> int:
    """Return how much ordinary memory is left outside of all ranges."""
    tables = int(layout.frames_bytes * PAGE_TABLE_SHARE)
    return memory.ram_bytes - sum(span.size_bytes for span in layout.spans) - tables


def _most(memory: Memory) -> int:
    """Return how much of R may be filled with containers so that these fit outside of it, too, beside the host."""
    frames = max(0, memory.ram_bytes - memory.host_bytes - STORE_LEAST_BYTES) // 2
    frames = _down(frames, memory.block_bytes)
    while frames > 0:
        heads = ranges.head_bytes(frames) + ranges.KASLR_RANGES * ALIGNMENT_BYTES
        outside = memory.ram_bytes - store_bytes(frames) - frames - heads - int(frames * PAGE_TABLE_SHARE)
        if outside >= frames + memory.host_bytes:
            break
        frames -= memory.block_bytes
    return frames


def _exactly(memory: Memory, wanted: int, most: int, slots: int) -> Layout:
    if wanted > most:
        raise Refusal(
            f"{_mib(wanted)} of {_mib(memory.ram_bytes)} RAM are too much: containers of that size must fit outside of "
            f"the ranges, too, beside {_mib(memory.host_bytes)} that the host itself needs; {_mib(most)} is the most",
            subject="--memory",
            hint=f"--memory {most // MIB}M, or leave it out",
        )
    try:
        return _fit(memory, wanted, slots)
    except _NoRoom:
        pass
    largest = _largest(memory, wanted, slots)
    if largest is None:
        raise _no_place(memory)
    raise Refusal(
        f"{_mib(wanted)} do not fit into the free pieces of this host's memory map; "
        f"{_mib(largest.frames_bytes)} do",
        subject="--memory",
        hint=f"--memory {largest.frames_bytes // MIB}M, or leave it out",
    )


def _no_place(memory: Memory) -> Refusal:
    pieces = [span for node in memory.nodes for span in node.free if span.end_bytes > LOWEST_BYTES]
    largest = max((span.size_bytes for span in pieces), default=0)
    return Refusal(
        f"the largest free piece above 1 GiB has {_mib(largest)}: too little for {_mib(memory.block_bytes)} of page "
        f"frames, {_mib(STORE_LEAST_BYTES)} of metadata, and a block of ordinary memory behind",
        subject="memory map of this host",
        hint="add memory; /proc/iomem shows the map",
    )


def _largest(memory: Memory, wanted: int, slots: int, *, split: bool = True) -> Layout | None:
    """Return the largest layout with at most ``wanted`` bytes of page frames."""
    for frames in range(_down(wanted, memory.block_bytes), 0, -memory.block_bytes):
        try:
            return _fit(memory, frames, slots, split=split)
        except _NoRoom:
            continue
    return None


def _fit(memory: Memory, wanted: int, slots: int, *, split: bool = True) -> Layout:
    """Return the layout with exactly ``wanted`` bytes of page frames, a multiple of the block size.

    :param split: a node may get several pieces
    """
    frames: list[Placed] = []
    shares = _shares(memory, wanted, slots - 1)
    spare = slots - 1 - len(shares) if split else 0
    for node, share in shares:
        pieces = list(_place(node, share, 1 + spare, memory.block_bytes))
        spare -= len(pieces) - 1
        frames += pieces
    store = _place_store(memory, store_bytes(wanted), [placed.span for placed in frames])
    return Layout(store, tuple(sorted(frames, key=lambda placed: placed.span)))


def _shares(memory: Memory, wanted: int, slots: int) -> list[tuple[Node, int]]:
    """Return how much each node gets: by its RAM. With too few ranges those with most programs get it all."""
    able = [node for node in memory.nodes if node.has_cpus or node.programs_bytes]
    able = able or list(memory.nodes)
    count = min(slots, wanted // memory.block_bytes)
    chosen = sorted(able, key=lambda node: (-node.programs_bytes, -node.ram_bytes, node.number))[:count]
    if not chosen:
        raise _NoRoom
    left, ram = wanted, sum(node.ram_bytes for node in chosen)
    found = []
    for place, node in enumerate(chosen):
        after = (len(chosen) - place - 1) * memory.block_bytes  # everybody gets a block
        share = min(
            left - after, max(memory.block_bytes, _up(left * node.ram_bytes // ram, memory.block_bytes))
        )
        found.append((node, share))
        left, ram = left - share, ram - node.ram_bytes
    return found


def _place(node: Node, wanted: int, pieces: int, block: int) -> Iterator[Placed]:
    """Yield ranges on a node, at most so many, as high as possible: one if there is a piece for it."""
    if wanted > NODE_SHARE * node.ram_bytes:
        raise _NoRoom
    last = max(span.end_bytes for span in node.ram) - block
    rooms = [(end, room) for span in node.free for end, room in [_room(span, last, block)] if room > 0]
    rooms.sort(reverse=True)
    while wanted > 0:
        whole = [(end, room) for end, room in rooms if room >= wanted]
        if pieces == 0 or not rooms:
            raise _NoRoom
        chosen = whole[0] if whole else max(rooms, key=lambda found: (found[1], found[0]))
        rooms.remove(chosen)
        end, size = chosen[0], min(wanted, chosen[1])
        head = ranges.head_bytes(size)
        yield Placed(Range(end - size - head, size + head), node.number, head)
        wanted, pieces = wanted - size, pieces - 1


def _room(span: Range, last: int, block: int) -> tuple[int, int]:
    """Return where a range in a free piece of memory would end, and how many bytes of page frames fit."""
    end = _down(min(span.end_bytes, last), block)
    start = _up(max(span.start_bytes, LOWEST_BYTES), ALIGNMENT_BYTES)
    size = _down(max(0, end - start), block)
    while size > 0 and end - size - ranges.head_bytes(size) < start:
        size -= block
    return end, size


def _place_store(memory: Memory, size: int, frames: list[Range]) -> Placed:
    """Return M: below all of R, and as high as that allows."""
    limit = min(span.start_bytes for span in frames) - SECTION_BYTES
    found = []
    for node in memory.nodes:
        for span in without(node.free, frames):
            end = _down(min(span.end_bytes, limit), SECTION_BYTES)
            start = _down(end - size, SECTION_BYTES)
            if start >= max(span.start_bytes, LOWEST_BYTES):
                found.append(Placed(Range(start, size), node.number))
    if not found:
        raise _NoRoom
    return max(found, key=lambda placed: placed.span)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _down(number: int, unit: int) -> int:
    return number // unit * unit


def _mib(number: int) -> str:
    return f"{number / (1 << 30):.1f} GiB" if number >= 10 << 30 else f"{number // MIB} MiB"
