# SPDX-License-Identifier: MIT
"""Threads that were stopped inside the vDSO.

After the restore other code may lie there, and CRIU does not look (criu issue #512). So the container is thawed and
frozen again until no thread is inside, a bounded number of times.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from upgrade import cgroup
from upgrade.host import Host

ATTEMPTS = 20
_PAUSE_S = 0.002


@dataclass(frozen=True, slots=True)
class Caught:
    """Threads inside the vDSO: when first frozen, and at the end; how often it was frozen again."""

    first: int
    left: int
    refrozen: int

    @property
    def action(self) -> str:
        """Return what was done, for the report."""
        if self.first == 0:
            return "none needed"
        times = f"thawed and frozen again {self.refrozen} time{'s' if self.refrozen != 1 else ''}"
        return f"{times}, {self.left} still inside" if self.left else f"{times} until none was inside"


def leave_vdso(host: Host, name: str, freeze_timeout_s: float) -> Caught:
    """Thaw and freeze a frozen cgroup until no thread is inside the vDSO."""
    first = left = inside(host, cgroup.pids(host, name), {})
    refrozen = 0
    while left and refrozen < ATTEMPTS:
        cgroup.thaw(host, name)
        time.sleep(_PAUSE_S)
        cgroup.freeze(host, [name], freeze_timeout_s)
        refrozen += 1
        left = inside(host, cgroup.pids(host, name), {})  # a program may have been executed meanwhile
    return Caught(first, left, refrozen)


def inside(host: Host, pids: Iterable[int], spans: dict[int, tuple[int, int] | None]) -> int:
    """Count the threads whose instruction pointer lies in their vDSO; ``spans`` remembers where those lie."""
    count = 0
    for pid in pids:
        if pid not in spans:
            spans[pid] = vdso_span(host.read_or(f"/proc/{pid}/maps", ""))
        span = spans[pid]
        if span is None:
            continue
        for thread in host.list(f"/proc/{pid}/task"):
            pointer = instruction_pointer(host.read_or(f"/proc/{pid}/task/{thread}/syscall", ""))
            count += pointer is not None and span[0] <= pointer < span[1]
    return count


def vdso_span(maps: str) -> tuple[int, int] | None:
    """Return where the 64-bit vDSO of a process lies (``/proc/PID/maps``).

    A 32-bit task waits for every system call inside its vDSO, at ``__kernel_vsyscall``, which CRIU leaves alone.
    """
    for line in maps.splitlines():
        if line.endswith("[vdso]"):
            start, _, end = line.split()[0].partition("-")
            return (int(start, 16), int(end, 16)) if int(start, 16) >= 1 << 32 else None
    return None


def instruction_pointer(syscall: str) -> int | None:
    """Return a stopped thread's instruction pointer (``/proc/PID/task/TID/syscall``); None while it runs."""
    words = syscall.split()
    return int(words[-1], 16) if len(words) >= 3 else None


def count(host: Host, pids: Iterable[int]) -> int:
    """Return how many threads some processes have."""
    return sum(len(host.list(f"/proc/{pid}/task")) for pid in pids)
