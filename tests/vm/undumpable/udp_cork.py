# SPDX-License-Identifier: MIT
"""Runs in the guest: a corked UDP socket."""

import socket

from condition import hold

CHECK = "containers.sockets"
UDP_CORK = 1


def make() -> object:
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    held.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1)
    return held


hold(make)
