# SPDX-License-Identifier: MIT
"""Runs in the guest: a netlink socket that is in a group, but has no address."""

import socket

from condition import hold

CHECK = "containers.sockets"
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK = 270, 1, 1


def make() -> object:
    held = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    held.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
    return held


hold(make)
