# SPDX-License-Identifier: MIT
"""Runs in the guest: a packet socket."""

import socket

from condition import hold

hold(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300))
