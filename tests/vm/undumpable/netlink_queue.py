# SPDX-License-Identifier: MIT
"""Runs in the guest: a netlink socket with an answer that nobody reads."""

import socket
import struct

from condition import hold

CHECK = "containers.sockets"
RTM_GETLINK, REQUEST_DUMP = 18, 0x301


def make() -> object:
    held = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    held.send(struct.pack("=IHHIIB15x", 32, RTM_GETLINK, REQUEST_DUMP, 1, 0, 0))
    return held


hold(make)
