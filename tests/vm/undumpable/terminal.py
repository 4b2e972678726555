# SPDX-License-Identifier: MIT
"""Runs in the guest: a terminal whose other end is outside."""

import os
import pty

from condition import hold, outside

CHECK = "containers.terminals"


def make() -> object:
    master, slave = pty.openpty()
    outside(lambda: master)
    os.close(master)
    return slave


hold(make)
