# SPDX-License-Identifier: MIT
"""Runs in the guest: an epoll that watches what the process has closed, but its child has open."""

import os
import select
import time

from condition import hold

CHECK = "containers.descriptors"


def make() -> object:
    reader, writer = os.pipe()
    poll = select.epoll()
    poll.register(reader, select.EPOLLIN)
    if os.fork() == 0:
        poll.close()
        time.sleep(100000)
    os.close(reader)
    return poll, writer


hold(make)
