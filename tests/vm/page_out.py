# SPDX-License-Identifier: MIT
"""Runs in the guest: has half of the private memory of processes swapped out."""

import os
import sys

sys.path.insert(0, "/usr/local/lib/seamless-upgrade")
from memfs import calls, residency

for pid in map(int, sys.argv[1:]):
    pidfd = os.pidfd_open(pid)
    for number, places in enumerate(residency.places(pid)):
        if not places.mapping.shared and number % 2 == 0:
            calls.process_madvise(pidfd, places.extents, calls.MADV_PAGEOUT)
    os.close(pidfd)
