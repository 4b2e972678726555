# SPDX-License-Identifier: MIT
"""Runs in the guest: a tun device, without a network namespace."""

import fcntl
import os
import struct

from condition import hold

CHECK = "containers.devices"
TUNSETIFF, IFF_TUN = 0x400454CA, 1


def make() -> object:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"undumpable", IFF_TUN))
    return fd


hold(make)
