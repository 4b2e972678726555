# SPDX-License-Identifier: MIT
"""Ask the server for its status and print it; wait until it is up."""

import socket
import sys
import time

DEADLINE_SECONDS = 120

deadline = time.monotonic() + DEADLINE_SECONDS
while True:
    try:
        with socket.create_connection(("127.0.0.1", 7100), timeout=60) as connection:
            connection.sendall(b"status\n")
            print(connection.makefile().readline().strip())
            break
    except OSError as e:
        if time.monotonic() > deadline:
            sys.exit(f"no answer: {e}")
        time.sleep(0.2)
