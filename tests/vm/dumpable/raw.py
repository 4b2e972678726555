# SPDX-License-Identifier: MIT
"""Runs in the guest: a raw socket."""

import socket

from condition import hold

hold(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
