# SPDX-License-Identifier: MIT
"""Runs in the guest: an MPTCP socket."""

import socket

from condition import hold

CHECK = "containers.sockets"
hold(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
