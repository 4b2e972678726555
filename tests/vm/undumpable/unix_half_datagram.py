# SPDX-License-Identifier: MIT
"""Runs in the guest: one end of a socket pair whose other end is outside."""

import socket

from condition import hold, outside

CHECK = "containers.unix"


def make() -> object:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    outside(lambda: there)
    there.close()
    return here


hold(make)
