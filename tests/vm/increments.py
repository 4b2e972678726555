# SPDX-License-Identifier: MIT
"""Runs in the guest: a client of Redis that counts over one connection, until a file is there."""

import socket
import sys
import time
from pathlib import Path

state = Path(sys.argv[1])
state.mkdir(exist_ok=True)
with socket.create_connection(("127.0.0.1", 6379), 60) as connection:

    def count() -> int:
        connection.sendall(b"INCR probe\r\n")
        return int(connection.recv(100).strip(b":\r\n"))

    last, longest, before = count(), 0.0, time.monotonic()
    (state / "runs").touch()
    while not (state / "end").exists():
        now, found = time.monotonic(), count()
        if found != last + 1:
            sys.exit(f"{last}, then {found}")
        last, longest, before = found, max(longest, now - before), now
        time.sleep(0.01)
    connection.sendall(b"DEL probe\r\n")
    connection.recv(100)
(state / "longest.new").write_text(f"{longest:.3f}")
(state / "longest.new").rename(state / "longest")
