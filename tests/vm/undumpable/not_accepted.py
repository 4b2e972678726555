# SPDX-License-Identifier: MIT
"""Runs in the guest: a TCP socket that listens, with a connection that is not accepted."""

import socket

from condition import hold

CHECK = "containers.sockets"


def make() -> object:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, socket.create_connection(listener.getsockname())


hold(make)
