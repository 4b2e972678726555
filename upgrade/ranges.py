# SPDX-License-Identifier: MIT
"""The ranges of this host: the first ``memmap=`` range is for metadata, all others are for page frames."""

from memfs import hotplug, namespace, ranges, store
from memfs.namespace import Namespace
from memfs.ranges import Range
from upgrade.host import Host
from upgrade.process import run

TIMEOUT_S = 20.0
VOLUME = "seamless-frames"
"""The label of the frame map's file system, which stays behind on its range."""
# blkid(8): nothing was found
_NOTHING = 2


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
    if space is not None:
        _refuse_foreign(space)
    return hotplug.bring_online(span, TIMEOUT_S, host.root)


def _refuse_foreign(space: Namespace) -> None:
    """Refuse a namespace that somebody else uses.

    Ours are dax devices, or block devices that hold a frame map or nothing.
    """
    if space.holder and not space.holder.startswith("dax"):
        raise store.ForeignData(
            f"{space.name} belongs to {space.holder}, which seamless-upgrade did not make (ndctl list -N shows it)"
        )
    device = space.block_device
    if device is None:
        return
    found = run(["blkid", "--probe", "--output", "export", str(device)], check=False)
    if found.returncode == _NOTHING and not found.stderr.strip():  # the same status as for an error
        return
    tags = dict(line.split("=", 1) for line in found.stdout.splitlines() if "=" in line)
    if found.returncode != 0 or (tags.get("TYPE"), tags.get("LABEL")) != ("erofs", VOLUME):
        what = tags.get("TYPE") or tags.get("PTTYPE") or found.stderr.strip() or "more than one kind"
        raise store.ForeignData(f"{device} holds data that seamless-upgrade did not write: {what}")
