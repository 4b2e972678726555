# SPDX-License-Identifier: MIT
"""Start Redis as a child, and publish numbered messages over one connection to it for ever."""

import socket
import subprocess
import sys
import time

PORT = 6380
PERIOD_SECONDS = 0.05
CHANNEL = b"numbers"


def command(*words: bytes) -> bytes:
    """Return a command as Redis wants it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def main(here: str) -> None:
    """Publish, and note in Redis itself what was published and what went wrong."""
    options = ["--save", "", "--appendonly", "no", "--dir", "/", "--logfile", f"{here}/redis.log"]
    options += ["--bind", "0.0.0.0", "--protected-mode", "no", "--port", str(PORT)]
    redis = subprocess.Popen(["/usr/bin/redis-server", *options])
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", PORT))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = connection.makefile("rb")
    number = 0
    while redis.poll() is None:
        text = b"%d" % number
        connection.sendall(command(b"PUBLISH", CHANNEL, text) + command(b"SET", b"published", text))
        answers = stream.readline(), stream.readline()
        if not answers[0].startswith(b":") or answers[1] != b"+OK\r\n":
            sys.exit(f"Redis says {answers}")
        number += 1
        time.sleep(PERIOD_SECONDS)


main(sys.argv[1])
