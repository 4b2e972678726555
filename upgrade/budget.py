# SPDX-License-Identifier: MIT
"""The memory that survives: which ranges there are, and whether the containers fit into them.

What a plan needs and what the checks report; every refusal names subject, reason and remedy.
"""

from collections.abc import Mapping, Sequence

from memfs import hotplug, ranges
from memfs.ranges import Range
from upgrade import cgroup, paths
from upgrade import ranges as host_ranges
from upgrade.engines import Container
from upgrade.errors import Refusal, UsageError
from upgrade.host import Host
from upgrade.request import Request

# Room on the range beside the pages: the other images, the file system's own, logs.
METADATA_BYTES = 16 << 20
METADATA_SHARE = 0.05
# With the frames in place: the frame map, pages that have to be copied, and page tables' worth of images.
FRAMES_SHARE = 0.015


def find_store(host: Host, append: str) -> Range:
    """Return range M: the first ``memmap=`` range, on both command lines and known to the kernel."""
    found = ranges.parse_command_line(host.command_line())
    if not found:
        raise Refusal(
            "no memory range that survives kexec is set aside (no memmap=SIZE!START on the command line)",
            subject="running kernel",
            hint="add for example memmap=1G!4G to GRUB_CMDLINE_LINUX in /etc/default/grub (1 GiB of RAM at 4 GiB, see "
            "the e820 map in dmesg), run update-grub and reboot once",
        )
    if len(found) > ranges.KASLR_RANGES:
        raise Refusal(
            f"{len(found)} memmap= ranges: more than {ranges.KASLR_RANGES} switch physical KASLR off",
            subject="running kernel",
            hint="join ranges that lie side by side",
        )
    if ranges.parse_command_line(append):
        raise UsageError(
            "memmap= ranges cannot be changed by an upgrade",
            subject="--append",
            hint="leave memmap= out of it",
        )
    seen = ranges.parse_iomem(host.read("/proc/iomem"))
    if found[0] not in seen:
        raise Refusal(
            "the kernel does not show it as persistent memory "
            f"({', '.join(map(str, seen)) or 'it shows none'}): firmware holds something there, or there is no RAM",
            subject=str(found[0]),
            hint="choose a range that dmesg's e820 map calls usable, aligned to 128 MiB",
        )
    return found[0]


def find_frames(host: Host, request: Request) -> tuple[tuple[Range, ...], list[str]]:
    """Return the ranges in which page frames stay, and warnings about those that cannot be used.

    :raises Refusal: if that was asked for and there is none
    """
    if request.pages == "copy":
        return (), []
    wanted, found = host_ranges.for_frames(host), host_ranges.online(host)
    lost = [span for span in wanted if span not in found]
    if request.pages == "in-place" and not found:
        raise Refusal(
            f"{lost[0]} is not online" if lost else "no second memmap= range is set aside for page frames",
            subject="running kernel",
            hint=f"seamless-upgrade frames; journalctl -u {paths.FRAMES_UNIT} says why it is not"
            if lost
            else "add one to GRUB_CMDLINE_LINUX, as large as the containers' memory, run update-grub and reboot once",
        )
    return found, [
        f"{span} is not online: pages cannot stay there (see {paths.FRAMES_UNIT})" for span in lost
    ]


def or_copy(
    host: Host,
    request: Request,
    containers: Sequence[Container],
    store: Range,
    frames: tuple[Range, ...],
) -> tuple[tuple[Range, ...], list[str]]:
    """Return no ranges, and a warning, where the containers do not fit into them but their copies do into ``store``.

    :raises Refusal: if the new kernel could not take the copies over
    """
    memory = sum(memory_bytes(host, c) for c in containers)
    inside = _inside(host, frames)
    if request.pages != "auto" or memory <= inside or not frames or _needed(memory, ()) > store.size_bytes:
        return frames, []
    _refuse_beside(host, memory, sum(swapped_bytes(host, c) for c in containers), inside)
    return (), [
        f"the containers have {memory >> 20} MiB, {', '.join(map(str, frames))} only {inside >> 20} MiB: their pages "
        f"are copied to {store}, which adds to the downtime (make the ranges larger, or preserve less)"
    ]


def _needed(memory: int, frames: tuple[Range, ...]) -> int:
    """Return how much of range M an upgrade takes."""
    return int(memory * (FRAMES_SHARE if frames else 1 + METADATA_SHARE)) + METADATA_BYTES


def _inside(host: Host, frames: tuple[Range, ...]) -> int:
    """Return how much memory the ranges for frames have."""
    return sum(part.size_bytes for span in frames for part in hotplug.online_spans(span, host.root))


def refuse_too_large(
    host: Host, containers: Sequence[Container], store: Range, frames: tuple[Range, ...]
) -> int:
    """Return what the containers hold, in bytes.

    :raises Refusal: if it does not fit into the ranges, or the new kernel could not take it over
    """
    memory = {c.name: memory_bytes(host, c) for c in containers}
    if frames:
        swapped = sum(swapped_bytes(host, c) for c in containers)
        _refuse_over_budget(host, memory, swapped, frames)
    needed = _needed(sum(memory.values()), frames)
    if needed > store.size_bytes:
        largest = max(memory, key=lambda name: memory[name])
        raise Refusal(
            f"has {store.size_bytes >> 20} MiB, the containers need {needed >> 20} MiB ({largest} alone "
            f"{memory[largest] >> 20} MiB)",
            subject=str(store),
            hint="make the range larger (memmap= on the command line, one ordinary reboot), or preserve less",
        )
    return sum(memory.values())


def _refuse_over_budget(
    host: Host, memory: Mapping[str, int], swapped: int, frames: tuple[Range, ...]
) -> None:
    """Refuse if the new kernel could not take the containers over: it has no memory of the ranges until then."""
    inside = _inside(host, frames)
    containers = sum(memory.values())
    if containers > inside:
        raise Refusal(
            f"the containers have {containers >> 20} MiB, the ranges for frames hold {inside >> 20} MiB",
            subject=", ".join(map(str, frames)),
            hint="preserve less, make the ranges larger (memmap=, one ordinary reboot), or, if they fit into the first "
            "range, copy: --pages copy",
        )
    _refuse_beside(host, containers, swapped, inside)


def _refuse_beside(host: Host, containers: int, swapped: int, inside: int) -> None:
    known = host.memory()
    total, available = known["MemTotal"], known["MemAvailable"]
    others = max(0, total - available - containers + swapped)
    if containers + others > total - inside:
        raise Refusal(
            f"the containers have {containers >> 20} MiB, the host itself needs {others >> 20} MiB, and outside of the "
            f"frames ranges there are {total - inside >> 20} MiB for both",
            subject="memory of the new kernel",
            hint="preserve less, make the frames ranges smaller, or add memory",
        )


def swapped_bytes(host: Host, container: Container) -> int:
    """Return how much of a container is swapped out; 0 without the memory controller."""
    return int(host.read_or(cgroup.path(container.cgroup, "memory.swap.current"), "0"))


def memory_bytes(host: Host, container: Container) -> int:
    """Return what a container's dump may hold at most: its anonymous and shared memory."""
    stat = dict(
        line.split() for line in host.read_or(cgroup.path(container.cgroup, "memory.stat"), "").splitlines()
    )
    if stat:
        return int(stat.get("anon", 0)) + int(stat.get("shmem", 0)) + swapped_bytes(host, container)
    total = 0
    for pid in cgroup.pids(host, container.cgroup):
        for line in host.read_or(f"/proc/{pid}/status", "").splitlines():
            if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")):
                total += int(line.split()[1]) * 1024
    return total
