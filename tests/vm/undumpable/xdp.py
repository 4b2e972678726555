# SPDX-License-Identifier: MIT
"""Runs in the guest: an AF_XDP socket."""

import socket

from condition import hold

CHECK = "containers.sockets"
hold(lambda: socket.socket(44, socket.SOCK_RAW))
