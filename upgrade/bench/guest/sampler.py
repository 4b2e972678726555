# SPDX-License-Identifier: MIT
"""Looks at the free memory of the old kernel, 20 times a second, until this kernel ends.

``python3 -m upgrade.bench.guest.sampler``. Every new low of MemAvailable is marked in the kernel's log at once:
nothing that is written to a file at the end would survive, and no disk may be written to during a standstill.
"""

import time
from pathlib import Path

from upgrade.bench.guest.marks import Marks

MEMINFO = Path("/proc/meminfo")
RUNNING = Path("/run/bench-sampler")
PERIOD_SECONDS = 0.05
STEP_KIB = 1024


def available_kib() -> int:
    """Return MemAvailable."""
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    raise OSError("no MemAvailable")


def main() -> None:
    """Sample until the file :data:`RUNNING` is gone."""
    marks = Marks()
    RUNNING.touch()
    low = available_kib()
    marks.write("before", low)
    while RUNNING.exists():
        now = available_kib()
        if now <= low - STEP_KIB:
            low = now
            marks.write("available", low)
        time.sleep(PERIOD_SECONDS)


if __name__ == "__main__":
    main()
