# SPDX-License-Identifier: MIT
"""Runs in the guest: a child with a pid namespace of its own."""

import os
import time

from condition import call, hold

CHECK = "containers.namespaces"
CLONE_NEWPID = 0x20000000


def make() -> object:
    child = os.fork()
    if child == 0:
        call("unshare", CLONE_NEWPID)
        if os.fork():
            os.wait()
        time.sleep(100000)
    time.sleep(1)
    return child


hold(make)
