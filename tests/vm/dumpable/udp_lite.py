# SPDX-License-Identifier: MIT
"""Runs in the guest: a UDP-Lite socket."""

import socket

from condition import hold


def make() -> object:
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
    held.bind(("127.0.0.1", 0))
    return held


hold(make)
