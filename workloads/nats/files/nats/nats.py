# SPDX-License-Identifier: MIT
"""As much of the NATS protocol as it takes to ask the server something and wait for the answer."""

import json
import socket
from typing import Any

PORT = 4222
INBOX = "_INBOX.workload"


class Client:
    """One connection."""

    def __init__(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", PORT), timeout=60)
        self.stream = self.socket.makefile("rwb")
        self.info: dict[str, Any] = json.loads(self.stream.readline().partition(b" ")[2])
        self.stream.write(b'CONNECT {"verbose":false}\r\nSUB %s 1\r\n' % INBOX.encode())

    def request(self, subject: str, body: bytes = b"") -> bytes:
        """Return the first answer to a request."""
        self.stream.write(b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), INBOX.encode(), len(body), body))
        self.stream.flush()
        while True:
            line = self.stream.readline()
            if line.startswith(b"MSG "):
                body = self.stream.read(int(line.split()[-1]) + 2)
                return body[:-2]
            if line.startswith(b"PING"):
                self.stream.write(b"PONG\r\n")
                self.stream.flush()
            elif not line or line.startswith(b"-ERR"):
                raise OSError(f"the server says {line!r}")

    def api(self, call: str, **arguments: Any) -> dict[str, Any]:
        """Call JetStream's API."""
        body = json.dumps(arguments).encode() if arguments else b""
        answer: dict[str, Any] = json.loads(self.request(f"$JS.API.{call}", body))
        if "error" in answer:
            raise OSError(f"{call}: {answer['error']}")
        return answer
