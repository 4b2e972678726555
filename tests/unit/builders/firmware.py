# SPDX-License-Identifier: MIT
"""Memory maps as firmware and kernel show them, below a directory."""

from collections.abc import Iterable, Mapping, Sequence

from builders.host import Machine
from memfs.ranges import Range

MIB, GIB = 1 << 20, 1 << 30
BLOCK = 128 * MIB
RAM = "System RAM"
Entry = tuple[int, int, str]
"""Start, end (the first address behind it), name."""

LOW = [
    (0, 0x1000, "Reserved"),
    (0x1000, 0x9FC00, RAM),
    (0x9FC00, 0x100000, "Reserved"),
]


def pc(high_bytes: int, low_bytes: int = 2 * GIB) -> list[Entry]:
    """Return the map of a machine with so much RAM below 4 GiB, and so much above."""
    entries = [*LOW, (MIB, low_bytes - 0x20000, RAM), (low_bytes - 0x20000, low_bytes, "Reserved")]
    entries.append((0xFEFFC000, 0xFF000000, "Reserved"))
    return [*entries, (4 * GIB, 4 * GIB + high_bytes, RAM)] if high_bytes else entries


def build(
    machine: Machine,
    entries: Sequence[Entry],
    inside: Iterable[Entry] = ((512 * MIB, 530 * MIB, "Kernel code"), (530 * MIB, 540 * MIB, "Kernel data")),
    nodes: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    block_bytes: int = BLOCK,
    programs_bytes: int = 64 * MIB,
    firmware: bool = True,
    aside: Sequence[Range] = (),
) -> None:
    """Write ``/sys/firmware/memmap``, ``/proc/iomem``, ``/proc/meminfo`` and the nodes' memory blocks.

    The kernel shows ranges that are set ``aside``, the firmware's map knows nothing of them.
    """
    lines = []
    for start, end, name in set_aside(entries, aside):
        lines.append(f"{start:08x}-{end - 1:08x} : {name}")
        lines += [f"  {a:08x}-{b - 1:08x} : {what}" for a, b, what in inside if start <= a < b <= end]
    machine.file("/proc/iomem", "\n".join(lines))
    for number, (start, end, name) in enumerate(entries if firmware else ()):
        where = f"/sys/firmware/memmap/{number}"
        machine.file(f"{where}/start", f"{start:#x}")
        machine.file(f"{where}/end", f"{end - 1:#x}")
        machine.file(f"{where}/type", name)
    ram = sum(end - start for start, end, name in entries if name == RAM)
    total = ram - 64 * MIB
    free = total - 200 * MIB - programs_bytes
    values = {"MemTotal": total, "MemAvailable": free, "AnonPages": programs_bytes, "Shmem": 0}
    machine.file("/proc/meminfo", "\n".join(f"{k}: {v // 1024} kB" for k, v in values.items()))
    machine.file("/sys/devices/system/memory/block_size_bytes", f"{block_bytes:x}")
    spans = nodes or {0: [(start, end) for start, end, name in entries if name == RAM]}
    for node, parts in spans.items():
        base = f"/sys/devices/system/node/node{node}"
        machine.file(f"{base}/cpulist", f"{node * 4}-{node * 4 + 3}")
        machine.file(
            f"{base}/meminfo", f"Node {node} AnonPages:    {programs_bytes // len(spans) // 1024} kB"
        )
        for start, end in parts:
            for number in range(start // block_bytes, -(-end // block_bytes)):
                machine.file(f"{base}/memory{number}/state", "online")


def set_aside(entries: Sequence[Entry], spans: Sequence[Range]) -> list[Entry]:
    """Return the map as the kernel shows it once ranges are set aside."""
    found = []
    for start, end, name in entries:
        for span in sorted(s for s in spans if start <= s.start_bytes < end and name == RAM):
            found += [
                (start, span.start_bytes, RAM),
                (span.start_bytes, span.end_bytes, "Persistent Memory (legacy)"),
            ]
            start = span.end_bytes
        found.append((start, end, name))
    return [(start, end, name) for start, end, name in found if start < end]
