# SPDX-License-Identifier: MIT
"""Runs in the guest: a unix socket in which credentials wait."""

import socket

from condition import hold

CHECK = "containers.unix"


def make() -> object:
    one, other = socket.socketpair()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    one.send(b"data")
    return one, other


hold(make)
