# SPDX-License-Identifier: MIT
"""The ranges of memory that survive: where they are, and whether they are large enough."""

import errno
import os
from collections.abc import Iterator

from memfs import hotplug, ranges
from memfs.ranges import Range
from upgrade import cgroup
from upgrade.budget import find_frames, find_store, or_copy, refuse_too_large
from upgrade.check.model import Finding, passed, skipped, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.errors import UpgradeError
from upgrade.host import Host

CMDLINE = "/proc/cmdline"
MEMORY_STAT = "/sys/fs/cgroup/*/memory.stat"
IOMEM = "/proc/iomem"
NODES = "/sys/devices/system/node"
# Of a range for frames, less is a waste
USABLE_SHARE = 0.7
# Of a container's memory, more is slow
REMOTE_SHARE = 0.1
# Before the first whole block: the info block, and room for the frame map (2 MiB a GiB) and for pages that are copied
HEAD_BYTES = 16 << 20


def store(situation: Situation) -> Iterator[Finding]:
    """Look for range M."""
    _shown(situation.host)
    found = find_store(situation.host, situation.request.append)
    yield passed(str(found), "reserved on the command line, and known to the kernel", IOMEM)


def frames(situation: Situation) -> Iterator[Finding]:
    """Look for the ranges in which page frames stay."""
    found, warnings = find_frames(situation.host, situation.request)
    for each in found:
        yield passed(str(each), "online as ordinary movable memory", "/sys/devices/system/memory")
    for text in warnings:
        yield warned(
            "frames ranges",
            text,
            source=CMDLINE,
            reason="pages are copied instead of staying where they are",
            remedy="journalctl -u seamless-upgrade-frames",
        )
    if not found and not warnings:
        yield warned(
            "frames ranges",
            "none" if situation.request.pages != "copy" else "not used: --pages copy",
            source=CMDLINE,
            reason="the containers' memory is copied: that takes longer, and twice the memory",
            remedy="set a second memmap= range aside, as large as the containers' memory",
        )


def budget(situation: Situation) -> Iterator[Finding]:
    """Compare the containers' memory with the ranges and with what the new kernel has."""
    span, spans = known(situation)
    spans, copied = or_copy(situation.host, situation.request, situation.containers, span, spans)
    for text in copied:
        yield warned(
            "containers' memory",
            text,
            source=MEMORY_STAT,
            reason="copying takes longer, and twice the memory",
            remedy="make the second memmap= range larger, or preserve less",
        )
    held = refuse_too_large(situation.host, situation.containers, span, spans)
    yield passed("containers' memory", f"{held >> 20} MiB, which fits", MEMORY_STAT)


def known(situation: Situation) -> tuple[Range, tuple[Range, ...]]:
    """Return the ranges, for the checks that look at what is in them.

    :raises Unknown: if they cannot be used (``memory.store`` and ``memory.frames`` say why)
    """
    try:
        _shown(situation.host)
        span = find_store(situation.host, situation.request.append)
        return span, find_frames(situation.host, situation.request)[0]
    except UpgradeError as e:
        raise Unknown(str(e), subject="the ranges") from e


def layout(situation: Situation) -> Iterator[Finding]:
    """Compare what the command line sets aside with what the kernel shows, and with memory blocks."""
    host = situation.host
    line = host.command_line()
    wanted, shown = ranges.parse_command_line(line), _shown(host)
    found = [each for span in wanted[1:] if (each := _not_as_wanted(span, shown))]
    found += [each for span in wanted[1:] if (each := _lost(host, span))]
    entries = [
        e for w in line.split() if w.startswith("memmap=") for e in w.removeprefix("memmap=").split(",")
    ]
    if len(entries) > ranges.KASLR_RANGES >= len(wanted):
        found.append(
            warned(
                "memmap=",
                f"{len(entries)} entries, of all kinds",
                source=CMDLINE,
                reason=f"more than {ranges.KASLR_RANGES} switch physical KASLR off (arch/x86/boot/compressed/kaslr.c)",
                remedy="join those that lie side by side",
            )
        )
    yield from found
    if not found and wanted:
        names = ", ".join(map(str, wanted))
        yield passed(names, "where the command line puts them", IOMEM)
    elif not found:
        yield skipped("ranges", "there are none", source=CMDLINE, reason="memory.store says so")


def _shown(host: Host) -> list[Range]:
    """Return the ranges that the kernel shows.

    :raises PermissionError: if it hides their addresses, which it does without telling
    """
    found = ranges.parse_iomem(host.read(IOMEM))
    if any(each.end_bytes == 1 for each in found):
        raise PermissionError(errno.EPERM, "addresses are hidden", IOMEM)
    return found


def _not_as_wanted(span: Range, shown: list[Range]) -> Finding | None:
    inside = [
        each for each in shown if each.start_bytes < span.end_bytes and span.start_bytes < each.end_bytes
    ]
    if span in inside:
        return None
    return warned(
        str(span),
        f"the kernel shows {', '.join(map(str, inside)) or 'nothing there'}",
        source=IOMEM,
        reason="firmware keeps it or a part of it, or there is no memory: no page frame can stay there",
        remedy="choose a range that dmesg's e820 map calls usable",
    )


def _lost(host: Host, span: Range) -> Finding | None:
    """Tell of a range for frames of which memory blocks leave out much: only whole ones can be given back."""
    block = hotplug.block_bytes(host.root)
    whole = [each for each, _ in hotplug.blocks(span, host.root)]
    # what the allocator gets starts behind an info block of 2 MiB and the page structures
    usable = sum(each.size_bytes for each in whole if each.start_bytes > span.start_bytes)
    if usable >= USABLE_SHARE * span.size_bytes:
        return None
    first = -(-span.start_bytes // block) * block
    return warned(
        str(span),
        f"{usable >> 20} of {span.size_bytes >> 20} MiB can hold page frames",
        source="/sys/devices/system/memory/block_size_bytes",
        reason=f"memory comes in blocks of {block >> 20} MiB, and the first bytes of the range belong to the frame map",
        remedy="let it begin some MiB before a whole block and end with one, for example at "
        f"{max(first, block) - HEAD_BYTES:#x}",
    )


def numa(situation: Situation) -> Iterator[Finding]:
    """Compare the nodes of the ranges with those that hold the containers' memory."""
    host = situation.host
    nodes = [name.removeprefix("node") for name in host.list(NODES) if name[4:].isdigit()]
    if len(nodes) < 2:
        yield passed("NUMA", "one node", NODES)
        return
    _, spans = known(situation)
    ours = {node for span in spans for node in _nodes_of(host, span)}
    bad = False
    for container in situation.containers:
        held = _by_node(host, cgroup.path(container.cgroup, "memory.numa_stat"))
        total, outside = sum(held.values()), sum(size for node, size in held.items() if node not in ours)
        if spans and outside > total * REMOTE_SHARE:
            bad = True
            yield warned(
                container.name,
                f"{outside >> 20} of {total >> 20} MiB are on nodes without a range",
                source=cgroup.path(container.cgroup, "memory.numa_stat"),
                reason=f"the ranges are on node {', '.join(sorted(ours)) or '-'}; pages from elsewhere are moved there "
                "or copied, and are slower to reach for their processors",
                remedy="set a range aside on every node that holds containers (memmap=, one ordinary reboot)",
            )
    if not bad:
        yield passed("NUMA", f"{len(nodes)} nodes; the ranges are where the containers are", NODES)


def _nodes_of(host: Host, span: Range) -> set[str]:
    """Return the nodes of a range's memory blocks (``memoryN/nodeM``)."""
    return {
        name.removeprefix("node")
        for _, path in hotplug.blocks(span, host.root)
        if path.is_dir()
        for name in os.listdir(path)
        if name.startswith("node") and name[4:].isdigit()
    }


def _by_node(host: Host, file: str) -> dict[str, int]:
    """Return what a cgroup has on each node, in bytes (cgroup-v2.rst, ``memory.numa_stat``)."""
    found: dict[str, int] = {}
    for line in host.read_or(file, "").splitlines():
        kind, *words = line.split()
        if kind in ("anon", "shmem"):
            for word in words:
                node, _, size = word.partition("=")
                found[node[1:]] = found.get(node[1:], 0) + int(size)
    return found
