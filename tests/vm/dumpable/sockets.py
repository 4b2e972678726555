# SPDX-License-Identifier: MIT
"""Runs in the guest: sockets of every kind that CRIU knows."""

import socket

from condition import directory, hold

IPPROTO_UDPLITE = 136


def make() -> object:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    netlink.bind((0, 1 << 17))  # RTNLGRP_IPV6_PREFIX: others of these programs make network devices
    log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    log.connect("/run/systemd/journal/dev-log")
    path = directory() / "socket"
    path.unlink(missing_ok=True)
    named = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    named.bind(str(path))
    named.listen()
    waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    waiting.connect(str(path))
    pair = socket.socketpair()
    pair[0].send(b"data")
    loose = [
        socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    ]
    return listener, client, server, netlink, log, named, waiting, pair, loose


hold(make)
