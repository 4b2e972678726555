# SPDX-License-Identifier: MIT
"""The memory of this host: what of it is RAM, on which NUMA node, what nobody may have, and what is in use.

The firmware's map (``/sys/firmware/memmap``) says what was RAM before any ``memmap=``; ``/proc/iomem`` what the kernel
made of it, and what lies inside: the kernel itself, the crash kernel, reserved pieces.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memfs import hotplug
from memfs.ranges import Range
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host

FIRMWARE = "/sys/firmware/memmap"
NODES = "/sys/devices/system/node"
RAM = "System RAM"
# What the host itself needs at the least, however idle it is: kernel, page tables, services, a boot
HOST_LEAST_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node. ``free`` is its RAM without what somebody has there already, by address."""

    number: int
    ram: tuple[Range, ...]
    free: tuple[Range, ...]
    has_cpus: bool = True
    programs_bytes: int = 0
    """Anonymous and shared memory that lies there now."""

    @property
    def ram_bytes(self) -> int:
        """Return how much RAM it has."""
        return sum(span.size_bytes for span in self.ram)


@dataclass(frozen=True, slots=True)
class Memory:
    """All nodes, and what the host has in use."""

    nodes: tuple[Node, ...]
    block_bytes: int
    programs_bytes: int
    """Anonymous and shared memory of all programs, and what is swapped out."""
    host_bytes: int
    """What is needed beside that: the kernel, its tables, caches that cannot be dropped."""

    @property
    def ram_bytes(self) -> int:
        """Return how much RAM there is."""
        return sum(node.ram_bytes for node in self.nodes)


def read(host: Host, ours: Sequence[Range] = ()) -> Memory:
    """Return the memory of a host; ``ours`` are ranges that were set aside before and may be used again.

    :raises UpgradeError: without the right to see physical addresses
    """
    ram, taken = _iomem(host.read("/proc/iomem"))
    if not ram:
        raise UpgradeError(
            "shows no addresses",
            subject="/proc/iomem",
            hint="run it as root",
            status=ExitStatus.NOT_PRIVILEGED,
        )
    ram = union([*ram, *ours])
    firmware = _firmware(host)
    if firmware:
        ram = intersection(ram, firmware)
    nodes = tuple(_nodes(host, ram, taken))
    known = host.memory()
    swapped = known.get("SwapTotal", 0) - known.get("SwapFree", 0)
    programs = known.get("AnonPages", 0) + known.get("Shmem", 0)
    held = ours[0].size_bytes if ours else 0  # the store is nobody's, and is given back first
    used = sum(span.size_bytes for span in ram) - held - known["MemAvailable"] - programs
    return Memory(
        nodes,
        hotplug.block_bytes(host.root),
        programs_bytes=programs + swapped,
        host_bytes=max(HOST_LEAST_BYTES, used),
    )


def union(spans: Iterable[Range]) -> tuple[Range, ...]:
    """Return the same memory as few ranges that do not touch, by address."""
    found: list[Range] = []
    for span in sorted(spans):
        if found and span.start_bytes <= found[-1].end_bytes:
            end = max(found[-1].end_bytes, span.end_bytes)
            found[-1] = Range(found[-1].start_bytes, end - found[-1].start_bytes)
        elif span.size_bytes:
            found.append(span)
    return tuple(found)


def intersection(some: Iterable[Range], others: Iterable[Range]) -> tuple[Range, ...]:
    """Return what lies in both; ranges of ``some`` are not joined."""
    both = []
    others = tuple(others)
    for one in some:
        for other in others:
            start = max(one.start_bytes, other.start_bytes)
            end = min(one.end_bytes, other.end_bytes)
            if start < end:
                both.append(Range(start, end - start))
    return tuple(sorted(both))


def without(spans: Iterable[Range], taken: Iterable[Range]) -> tuple[Range, ...]:
    """Return what of ``spans`` lies in nothing of ``taken``."""
    left = list(spans)
    for hole in taken:
        rest = []
        for span in left:
            before = min(span.end_bytes, hole.start_bytes) - span.start_bytes
            after = span.end_bytes - max(span.start_bytes, hole.end_bytes)
            if before > 0:
                rest.append(Range(span.start_bytes, before))
            if after > 0:
                rest.append(Range(span.end_bytes - after, after))
        left = rest
    return tuple(sorted(left))


def _iomem(text: str) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Return RAM, and what lies inside of RAM. To those who may not see addresses all are zero."""
    ram, taken = [], []
    inside = False
    for line in text.splitlines():
        span, _, name = line.strip().partition(" : ")
        start, last = (int(part, 16) for part in span.split("-"))
        if last == 0:
            continue
        found = Range(start, last - start + 1)
        if not line.startswith(" "):
            inside = name == RAM
            if inside:
                ram.append(found)
        elif inside:
            taken.append(found)
    return tuple(ram), tuple(taken)


def _firmware(host: Host) -> tuple[Range, ...]:
    """Return what the firmware calls RAM; nothing without CONFIG_FIRMWARE_MEMMAP (x86 always has it)."""
    found = []
    for name in host.list(FIRMWARE):
        entry = f"{FIRMWARE}/{name}"
        if host.read(f"{entry}/type") == RAM:
            start = int(host.read(f"{entry}/start"), 16)
            found.append(Range(start, int(host.read(f"{entry}/end"), 16) - start + 1))
    return union(found)


def _nodes(host: Host, ram: tuple[Range, ...], taken: tuple[Range, ...]) -> Iterator[Node]:
    segments = _segments(host)
    for number in sorted(segments):
        inside = intersection(ram, segments[number])
        if not inside:
            continue
        yield Node(
            number,
            inside,
            without(inside, taken),
            has_cpus=host.read_or(f"{NODES}/node{number}/cpulist", "0").strip() != "",
            programs_bytes=_programs(host.read_or(f"{NODES}/node{number}/meminfo", "")),
        )


def _segments(host: Host) -> dict[int, list[Range]]:
    """Return which addresses belong to which node: from its first memory block to the first of another.

    Between them may lie memory that is in no block, because it is set aside. A block of two nodes is nobody's.
    """
    size = hotplug.block_bytes(host.root)
    owners: dict[int, int | None] = {}
    for name in host.list(NODES):
        if match := re.fullmatch(r"node(\d+)", name):
            for entry in host.list(f"{NODES}/{name}"):
                if block := re.fullmatch(r"memory(\d+)", entry):
                    number = int(block[1])
                    owners[number] = None if number in owners else int(match[1])
    if not owners:  # no CONFIG_NUMA, or no CONFIG_MEMORY_HOTPLUG
        return {0: [Range(0, 1 << 64)]}
    found: dict[int, list[Range]] = {}
    borders = [
        (block, owners[block])
        for before, block in zip([None, *sorted(owners)], sorted(owners), strict=False)
        if before is None or owners[before] != owners[block]
    ]
    for (first, owner), following in zip(borders, [*(block for block, _ in borders[1:]), None], strict=True):
        end = following * size if following is not None else 1 << 64
        if owner is not None:
            found.setdefault(owner, []).append(Range(first * size, end - first * size))
    return found


def _programs(meminfo: str) -> int:
    """Return the anonymous and shared memory in a node's ``meminfo`` (``Node 0 AnonPages: 4 kB``)."""
    values = re.findall(r"^Node \d+ (?:AnonPages|Shmem):\s+(\d+) kB$", meminfo, re.MULTILINE)
    return sum(map(int, values)) * 1024
