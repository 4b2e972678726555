# SPDX-License-Identifier: MIT
"""Runs in the guest: /dev/tty, without the terminal behind it."""

import fcntl
import os
import pty
import termios

from condition import hold

CHECK = "containers.terminals"


def make() -> object:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    own = os.open("/dev/tty", os.O_RDWR)
    os.close(slave)
    return master, own


hold(make)
