# SPDX-License-Identifier: MIT
"""Runs in the guest: an epoll of a parent that its child has inherited, without all that it watches."""

import os
import select
import time

from condition import hold


def make() -> object:
    poll = select.epoll()
    if os.fork() == 0:
        time.sleep(100000)
    reader, writer = os.pipe()
    poll.register(reader, select.EPOLLIN)
    return poll, reader, writer


hold(make)
