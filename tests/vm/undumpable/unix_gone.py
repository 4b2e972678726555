# SPDX-License-Identifier: MIT
"""Runs in the guest: a unix socket that listens, to which somebody has connected who has gone."""

import socket

from condition import directory, hold

CHECK = "containers.unix"


def make() -> object:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = directory() / "socket"
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    listener.listen()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
    return listener


hold(make)
