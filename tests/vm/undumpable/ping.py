# SPDX-License-Identifier: MIT
"""Runs in the guest: a ping socket."""

import socket

from condition import hold

CHECK = "containers.sockets"
hold(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP))
