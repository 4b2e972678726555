# SPDX-License-Identifier: MIT
"""From what a guest noted to figures: downtime and phases of one cell. Nothing here touches a machine."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upgrade.bench.matrix import Way
from upgrade.report.model import Phase

MARK = re.compile(r"bench: (before|available|jump) (\d+)$", re.MULTILINE)
KIB = 1024


@dataclass(frozen=True, slots=True)
class Noted:
    """What the guest says after it is back: values of the time stamp counter.

    ``begins`` and ``ends`` are the edges of each container's largest gap, ``stamps`` those of the baseline.
    """

    marked: int
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    started: tuple[int, ...]
    kernel: int
    userspace: int
    hertz: float
    stamps: Mapping[str, int]
    jump: int | None

    @property
    def continuous(self) -> bool:
        """Whether the counter ran on: all edges lie behind the mark that was set before."""
        edges = (*self.begins, *self.ends, self.kernel)
        return min(edges) >= self.marked and all(b < e for b, e in zip(self.begins, self.ends, strict=True))

    @property
    def downtime_seconds(self) -> float | None:
        """From the first container's last tick to the last one's first."""
        if not self.begins or not self.continuous:
            return None
        return (max(self.ends) - min(self.begins)) / self.hertz

    @property
    def container_seconds(self) -> tuple[float, ...]:
        """Each container's own gap."""
        if not self.continuous:
            return ()
        return tuple((e - b) / self.hertz for b, e in zip(self.begins, self.ends, strict=True))

    @property
    def floor_seconds(self) -> float | None:
        """From the system call that enters the kernel to the first userspace."""
        if self.jump is None or not self.continuous:
            return None
        return (self.userspace - self.jump) / self.hertz

    def phases(self, way: Way) -> tuple[Phase, ...]:
        """Return the phases of a baseline; together they are its downtime."""
        if not self.continuous or not self.begins or self.jump is None:
            return ()
        gone, here = min(self.begins), max(self.ends)
        kernel = [("jump", self.kernel), ("kernel boot to first userspace", self.userspace)]
        if way is Way.IMAGES:
            edges = [("dump", self.stamps["dumped"]), ("write to disk", self.jump), *kernel]
            edges += [("userspace to restore", self.stamps["back"]), ("restore", here)]
        else:
            name, jump = ("shutdown", "reset") if way is Way.REBOOT else ("stop", "jump")
            edges = [(name, self.jump), (jump, self.kernel), kernel[1]]
            edges += [("userspace to start", max(self.started)), ("start", here)]
        begins = [gone, *(at for _, at in edges)]
        return tuple(
            Phase(name, (end - begin) / self.hertz) for begin, (name, end) in zip(begins, edges, strict=False)
        )


def noted(marked: Mapping[str, Any], collected: Mapping[str, Any], console: str) -> Noted:
    """Return what the guest noted.

    :param console: what was written to the console since before the cell began
    """
    containers: Sequence[Mapping[str, int]] = collected["containers"]
    return Noted(
        marked=marked["tsc"],
        begins=tuple(c["begin"] for c in containers),
        ends=tuple(c["end"] for c in containers),
        started=tuple(c["begun"] for c in containers),
        kernel=collected["kernel"],
        userspace=collected["userspace"] or collected["kernel"],
        hertz=collected["hertz"],
        stamps=collected["state"].get("stamps", {}),
        jump=last_mark(console, "jump"),
    )


def last_mark(console: str, name: str) -> int | None:
    """Return the value of the last mark of this name on a console."""
    values = [int(value) for found, value in MARK.findall(console) if found == name]
    return values[-1] if values else None


def extra_bytes(console: str) -> int | None:
    """Return how far the available memory fell below what it was at the start; None where nobody looked."""
    before, low = last_mark(console, "before"), last_mark(console, "available")
    if before is None:
        return None
    return (before - low) * KIB if low is not None else 0
