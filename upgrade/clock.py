# SPDX-License-Identifier: MIT
"""Time that runs on across kexec: the time stamp counter, tied to the kernel's clocks.

Every stamp of a session is a plain TSC value. What a stamp means in nanoseconds, or on the wall clock, follows
from *ties*: moments at which the counter and a clock of the kernel were read together.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from upgrade.linux import tsc_reader

ATTEMPTS = 9

# The kernel calibrates the counter at boot against other clocks, some tens of parts in a million off.
CALIBRATION_ERROR = 50e-6


@dataclass(frozen=True, slots=True)
class Tie:
    """One moment on three clocks; ``error_ns`` is how far apart the readings may lie."""

    tsc: int
    raw_ns: int  # CLOCK_MONOTONIC_RAW: not slewed, so that it measures the counter's frequency
    wall_ns: int  # CLOCK_REALTIME
    error_ns: int


@dataclass(frozen=True, slots=True)
class Frequency:
    """Ticks a second of the counter, and how wrong that may be (parts of one)."""

    hertz: float
    relative_error: float

    def ns(self, ticks: int) -> int:
        """Return how many nanoseconds ``ticks`` are."""
        return round(ticks * 1e9 / self.hertz)

    def error_ns(self, ticks: int) -> int:
        """Return how wrong :meth:`ns` may be for ``ticks``."""
        return round(abs(self.ns(ticks)) * self.relative_error) + 1


class Clock:
    """Reads the counter."""

    def __init__(self, read: Callable[[], int] | None = None) -> None:
        self.tsc = read if read is not None else tsc_reader()

    def tie(self) -> Tie:
        """Read counter and clocks together, as tightly as a few attempts allow."""
        return min((self._tie_once() for _ in range(ATTEMPTS)), key=lambda tie: tie.error_ns)

    def _tie_once(self) -> Tie:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        tsc = self.tsc()
        wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return Tie(tsc, (before + after) // 2, wall, after - before)


def frequency(first: Tie, last: Tie) -> Frequency:
    """Return the counter's frequency from two ties of the same kernel, the further apart the better."""
    elapsed_ns = last.raw_ns - first.raw_ns
    ticks = last.tsc - first.tsc
    if elapsed_ns <= 0 or ticks <= 0:
        raise ValueError("the ties are not in order or the time stamp counter does not run")
    return Frequency(
        ticks * 1e9 / elapsed_ns, (first.error_ns + last.error_ns) / elapsed_ns + CALIBRATION_ERROR
    )


def wall_ns(reference: Tie, tsc: int, rate: Frequency) -> int:
    """Return what the wall clock of ``reference`` shows at ``tsc``, nanoseconds since the epoch."""
    return reference.wall_ns + rate.ns(tsc - reference.tsc)
