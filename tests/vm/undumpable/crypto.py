# SPDX-License-Identifier: MIT
"""Runs in the guest: a socket of the crypto API."""

import socket

from condition import hold

CHECK = "containers.sockets"
hold(lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET))
