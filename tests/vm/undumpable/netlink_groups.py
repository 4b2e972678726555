# SPDX-License-Identifier: MIT
"""Runs in the guest: a netlink socket in a group beyond the first 32."""

import socket

from condition import hold

CHECK = "containers.sockets"
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_TUNNEL = 270, 1, 35


def make() -> object:
    held = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    held.bind((0, 0))
    held.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_TUNNEL)
    return held


hold(make)
