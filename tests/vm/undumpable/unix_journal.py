# SPDX-License-Identifier: MIT
"""Runs in the guest: a stream connection with the journal."""

import socket

from condition import hold

CHECK = "containers.unix"


def make() -> object:
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    held.connect("/run/systemd/journal/stdout")
    held.send(b"condition\n\n6\n0\n0\n0\n0\n")
    return held


hold(make)
