# SPDX-License-Identifier: MIT
"""The ranges of this host: the first ``memmap=`` range is for metadata, all others are for page frames."""

from memfs import hotplug, namespace, ranges, store
from memfs.ranges import Range
from upgrade.host import Host
from upgrade.process import run

TIMEOUT_S = 20.0
# ours: what the frame map leaves behind, and what a dax device is known by
_OURS = ("erofs", "")


def for_frames(host: Host) -> tuple[Range, ...]:
    """Return the ranges for page frames, as the command line has them."""
    return tuple(ranges.parse_command_line(host.command_line())[1:])


def online(host: Host) -> tuple[Range, ...]:
    """Return those of them that the allocator has, at least in part."""
    return tuple(span for span in for_frames(host) if hotplug.online_spans(span, host.root))


def describe(host: Host, span: Range) -> dict[str, int]:
    """Return a range for machines, with how much of it the allocator has."""
    inside = sum(part.size_bytes for part in hotplug.online_spans(span, host.root))
    return {"start_bytes": span.start_bytes, "size_bytes": span.size_bytes, "online_bytes": inside}


def bring_online(host: Host, span: Range) -> tuple[Range, ...]:
    """Give a range to the allocator; return its parts that are online then.

    :raises memfs.hotplug.NotOnline: if the kernel refuses
    :raises memfs.store.ForeignData: if somebody else keeps data there
    """
    run(["modprobe", "--all", *hotplug.MODULES])
    space = namespace.find(span, host.root)
    device = space.block_device if space is not None else None
    if device is not None:
        kind = run(["blkid", "--probe", "--output", "value", "--match-tag", "TYPE", str(device)], check=False)
        if kind.stdout.strip() not in _OURS:
            raise store.ForeignData(
                f"{device} holds data that seamless-upgrade did not write: {kind.stdout.strip()}"
            )
    return hotplug.bring_online(span, TIMEOUT_S, host.root)
