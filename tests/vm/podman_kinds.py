#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What runs in the containers of podman_kinds.sh: it counts, repeats, serves or asks, and says who it is."""

import os
import socket
import sys
import threading
import time

WHO = os.urandom(8).hex()


def serve() -> None:
    """Answer each line of a connection with its number there."""
    with socket.create_server(("0.0.0.0", 80)) as server:
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


def answer(line: socket.socket) -> None:
    """Serve one connection."""
    with line, line.makefile("rw") as stream:
        for number, _ in enumerate(stream, 1):
            stream.write(f"{number} {WHO}\n")
            stream.flush()


def ask() -> None:
    """Ask over one connection for ever; end at the first wrong answer."""
    while True:
        try:
            line = socket.create_connection(("127.0.0.1", 80))
            break
        except ConnectionRefusedError:
            time.sleep(0.2)
    number, served_by = 0, ""
    with line, line.makefile("rw") as stream:
        while True:
            number += 1
            stream.write("next\n")
            stream.flush()
            got = stream.readline().split()
            served_by = served_by or got[1]
            assert got == [str(number), served_by], f"{got} is answer {number}"
            time.sleep(0.2)


def repeat() -> None:
    """Repeat what is typed."""
    for line in sys.stdin:
        print("heard", line.strip(), os.ttyname(0), flush=True)


threading.Thread(target={"serve": serve, "ask": ask, "repeat": repeat}[sys.argv[1]]).start()
beat = 0
while threading.active_count() > 1:
    beat += 1
    print("beat", beat, WHO, flush=True)
    time.sleep(0.5)
sys.exit(1)
