# SPDX-License-Identifier: MIT
"""Runs in the guest: a child with a mount namespace of its own."""

import os
import time

from condition import call, hold

CHECK = "containers.namespaces"
CLONE_NEWNS = 0x20000


def make() -> object:
    child = os.fork()
    if child == 0:
        call("unshare", CLONE_NEWNS)
        time.sleep(100000)
    time.sleep(1)
    return child


hold(make)
