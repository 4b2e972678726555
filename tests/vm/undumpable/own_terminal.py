# SPDX-License-Identifier: MIT
"""Runs in the guest: /dev/tty, without the terminal behind it."""

import fcntl
import os
import pty
import termios

from condition import hold, outside

CHECK = "containers.terminals"


def make() -> object:
    master, slave = pty.openpty()
    outside(lambda: master)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    own = os.open("/dev/tty", os.O_RDWR)
    os.close(master)
    os.close(slave)
    return own


hold(make)
