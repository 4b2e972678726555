# SPDX-License-Identifier: MIT
"""Runs in the guest: holds equal pages that KSM may merge, and pages of its own; looks at all of them again and again.

Writes how often it found everything as it was, or what it found instead.
"""

import hashlib
import mmap
import os
import sys
import time
from pathlib import Path

MIB = 1 << 20
target = Path(sys.argv[1])
areas = []
for size, chunk in ((8 * MIB, b"the same everywhere!"), (8 * MIB, None)):
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_MERGEABLE)
    page = (chunk or b"").ljust(mmap.PAGESIZE, b"x")
    for at in range(0, size, mmap.PAGESIZE):
        area[at : at + mmap.PAGESIZE] = page if chunk else os.urandom(mmap.PAGESIZE)
    areas.append(area)

before = [hashlib.sha256(area).hexdigest() for area in areas]
rounds = 0
while True:
    now = [hashlib.sha256(area).hexdigest() for area in areas]
    rounds += 1
    text = f"{rounds} rounds, pid {os.getpid()}\n" if now == before else f"DAMAGED after {rounds} rounds\n"
    target.with_suffix(".new").write_text(text)
    target.with_suffix(".new").rename(target)
    time.sleep(0.2)
