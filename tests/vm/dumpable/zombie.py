# SPDX-License-Identifier: MIT
"""Runs in the guest: a task with a child that has ended."""

import os

from condition import hold


def make() -> object:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return child


hold(make)
