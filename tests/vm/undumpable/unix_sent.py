# SPDX-License-Identifier: MIT
"""Runs in the guest: a unix socket that has sent data, and is not accepted."""

import socket

from condition import directory, hold

CHECK = "containers.unix"


def make() -> object:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = directory() / "socket"
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    listener.listen()
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(path))
    client.send(b"data")
    return listener, client


hold(make)
