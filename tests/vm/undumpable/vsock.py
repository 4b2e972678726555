# SPDX-License-Identifier: MIT
"""Runs in the guest: a vsock."""

import socket

from condition import hold

CHECK = "containers.sockets"
hold(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
