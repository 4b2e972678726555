# SPDX-License-Identifier: MIT
"""Runs in the guest: descriptors of every kind that CRIU knows."""

import ctypes
import os
import select
import signal

from condition import call, directory, hold

IN_MODIFY = 2


def make() -> object:
    watch = call("inotify_init")
    call("inotify_add_watch", watch, ctypes.c_char_p(str(directory()).encode()), IN_MODIFY)
    poll = select.epoll()
    count = os.eventfd(3)
    poll.register(count, select.EPOLLIN)
    mask = ctypes.c_uint64(1 << (signal.SIGUSR1 - 1))
    signals = call("signalfd", -1, ctypes.byref(mask), 0)
    child = os.fork()
    if child == 0:
        signal.pause()
    own = os.pidfd_open(child)
    return (
        watch,
        poll,
        count,
        signals,
        call("timerfd_create", 1, 0),
        os.memfd_create("sealed", os.MFD_ALLOW_SEALING),
        own,
    )


hold(make)
