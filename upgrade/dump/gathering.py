# SPDX-License-Identifier: MIT
"""Moving the containers' pages into the ranges for frames while they run, before the freeze.

What was allocated while a range was full, or comes from the last upgrade's restore, lies elsewhere. The range for
metadata is the swap device that the pages pass through: its file system is made afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memfs import damon, gather, hotplug, residency, room, swap
from memfs.ranges import Range
from memfs.residency import Residency
from upgrade import cgroup
from upgrade.config import Config
from upgrade.engines.base import Container
from upgrade.events import Events
from upgrade.host import Host
from upgrade.pagemaps import PAGE_BYTES
from upgrade.undo import Undo

# So few pages are copied faster than moved: 1 MiB takes less than a millisecond, making room for it takes seconds.
FEW_PAGES, FEW_SHARE = 256, 0.001
# Room for what is seen only when the tasks stand still, and for what they allocate until then
COPIES_PAGES = 8192
# Between two lines of progress
PROGRESS_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Gathering:
    """What was moved, and what that cost; sizes in pages, times in nanoseconds."""

    pages: int
    outside_before: int
    outside_after: int
    duration_ns: int = 0
    longest_step_ns: int = 0
    """So long a page was away at the most."""
    refaults: int = 0
    """How often the containers themselves wanted a page while it was away."""
    dropped_cache: bool = False
    left: Mapping[str, int] = field(default_factory=dict)
    """Why pages still lie elsewhere."""

    def to_json(self) -> dict[str, Any]:
        """Return it for the report."""
        return {
            "pages": self.pages,
            "pages_outside_before": self.outside_before,
            "pages_outside_after": self.outside_after,
            "seconds": self.duration_ns / 1e9,
            "longest_step_seconds": self.longest_step_ns / 1e9,
            "refaults": self.refaults,
            "dropped_cache": self.dropped_cache,
            "left": dict(self.left),
        }


def survey(host: Host, containers: Sequence[Container], spans: Sequence[Range]) -> Residency:
    """Return where the pages of containers lie."""
    pids = [pid for container in containers for pid in cgroup.pids(host, container.cgroup)]
    return residency.survey(pids, online(host, spans))


@dataclass(frozen=True, slots=True)
class Residence:
    """Where a container's pages lie. Pages that several containers share count for each."""

    name: str
    pages: int
    in_place: int

    @property
    def to_copy(self) -> int:
        """Return how many would have to be moved or copied."""
        return self.pages - self.in_place

    def to_json(self) -> dict[str, int | str]:
        """Return it for machines."""
        return {"name": self.name, "pages": self.pages, "pages_in_place": self.in_place}

    def __str__(self) -> str:
        share = 100 * self.in_place / self.pages if self.pages else 100.0
        size = self.pages * PAGE_BYTES >> 20
        return f"{self.name}  {share:.1f} % of {size} MiB can stay, {self.to_copy} pages to move or copy"


def residences(host: Host, containers: Sequence[Container], spans: Sequence[Range]) -> list[Residence]:
    """Return where the pages of each container lie."""
    found = []
    for container in containers:
        seen = survey(host, [container], spans)
        pages = seen.total.pages + seen.unmapped
        found.append(Residence(container.name, pages, seen.total.in_place))
    return found


def online(host: Host, spans: Sequence[Range]) -> tuple[Range, ...]:
    """Return the parts of ranges that hold frames."""
    return tuple(part for span in spans for part in hotplug.online_spans(span, host.root))


def outside(found: Residency) -> int:
    """Return how many pages would have to be copied."""
    return found.total.outside + found.total.swapped + found.unmapped


def is_worth_it(found: Residency) -> bool:
    """Tell whether so many pages lie elsewhere that they should be moved."""
    return outside(found) > max(FEW_PAGES, FEW_SHARE * found.total.pages)


def make_room(host: Host, containers: Sequence[Container], spans: Sequence[Range]) -> int:
    """Have room in the ranges for copies of what lies elsewhere: those are made while the tasks stand still.

    What is in the way is page cache, which ends with this kernel. Returns how many pages will have to be copied if no
    more move.
    """
    found = survey(host, containers, spans)
    left = outside(found)
    room.drop(online(host, spans), (left + COPIES_PAGES) * PAGE_BYTES, found.frames, host.root)
    return left


class Gatherer:
    """Gathers the pages of containers; what it changes on the way is in the undo journal meanwhile."""

    def __init__(self, host: Host, config: Config, events: Events, undo: Undo) -> None:
        self.host = host
        self.config = config
        self.events = events
        self.undo = undo
        self.told_bytes = 0

    def gather(self, containers: Sequence[Container], spans: Sequence[Range], device: Path) -> Gathering:
        """Move what lies elsewhere.

        :param device: a block device that the pages can pass through
        :raises memfs.store.ForeignData: if the device holds somebody else's data
        """
        parts = online(self.host, spans)
        found = survey(self.host, containers, spans)
        if not is_worth_it(found):
            return Gathering(found.total.pages, outside(found), outside(found))
        pids = [pid for each in containers for pid in cgroup.pids(self.host, each.cgroup)]
        self.undo.push("blocks", spans=[[p.start_bytes, p.size_bytes] for p in parts])
        made = room.make(parts, outside(found) * PAGE_BYTES, found.frames, self.host.root)
        self.undo.forget("blocks")
        limits = swap.limits(pids, self.host.root)
        self.undo.push("swap_limits", limits=limits)
        self.undo.push("unswap", device=str(device))
        by_frame = damon.is_free(self.host.root)
        if by_frame:
            self.undo.push("undamon")
        with swap.lifted(limits, self.host.root), swap.swap(device):
            moved = gather.gather(
                pids, parts, step_bytes=self.config.gather_step_bytes, progress=self._progress
            )
        if by_frame:
            self.undo.forget("undamon")
        self.undo.forget("unswap")
        self.undo.forget("swap_limits")
        after = survey(self.host, containers, spans)
        return Gathering(
            pages=after.total.pages,
            outside_before=outside(found),
            outside_after=after.total.outside + after.total.swapped,
            duration_ns=made.duration_ns + moved.duration_ns,
            longest_step_ns=moved.longest_step_ns,
            refaults=moved.refaults,
            dropped_cache=made.dropped_cache,
            left=dict(moved.left),
        )

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        if done_bytes - self.told_bytes >= PROGRESS_BYTES:
            self.told_bytes = done_bytes
            self.events.say(f"  {done_bytes >> 20} of {total_bytes >> 20} MiB moved")
