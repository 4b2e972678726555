# SPDX-License-Identifier: MIT
"""Runs in the guest: a child in another cgroup."""

import os
import time

from condition import hold, leave_cgroup

CHECK = "containers.tasks"


def make() -> object:
    child = os.fork()
    if child == 0:
        leave_cgroup()
        time.sleep(100000)
    time.sleep(1)
    return child


hold(make)
