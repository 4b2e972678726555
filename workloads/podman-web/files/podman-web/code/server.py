# SPDX-License-Identifier: MIT
"""A service with memory: it answers over TCP, and checks all the time that its memory holds what was written there."""

import hashlib
import json
import mmap
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

PORT = 80
MEMORY_BYTES = int(os.environ.get("MEMORY_MIB", "32")) << 20
CHUNK_BYTES = 1 << 20
SHARED = Path("/dev/shm/counter")
VOLUME = Path("/data/journal")


class Service:
    """What the connections share."""

    def __init__(self) -> None:
        self.marker = os.urandom(8).hex()
        self.memory = [bytearray(os.urandom(CHUNK_BYTES)) for _ in range(MEMORY_BYTES // CHUNK_BYTES)]
        self.digests = [hashlib.sha256(chunk).digest() for chunk in self.memory]
        self.beats = self.passes = self.errors = self.served = 0
        SHARED.write_bytes(bytes(mmap.PAGESIZE))
        with SHARED.open("r+b") as file:
            self.shared = mmap.mmap(file.fileno(), 0)
        self.journal = VOLUME.open("a", buffering=1)

    def check(self) -> None:
        """Look at all memory, again and again."""
        while True:
            for chunk, digest in zip(self.memory, self.digests, strict=True):
                self.errors += hashlib.sha256(chunk).digest() != digest
                time.sleep(0.02)
            self.passes += 1

    def beat(self) -> None:
        """Print a line a second."""
        while True:
            self.beats += 1
            print(f"beat {self.beats} {self.marker}", flush=True)
            self.journal.write(f"{self.beats}\n")
            time.sleep(1)

    def serve(self, connection: socket.socket) -> None:
        """Answer every line of a connection with a line of JSON."""
        with connection, connection.makefile("rwb") as stream:
            for number, line in enumerate(stream, 1):
                self.served += 1
                struct.pack_into("<Q", self.shared, 0, self.served)
                stream.write(json.dumps(self.state(line.decode().strip(), number)).encode() + b"\n")
                stream.flush()

    def state(self, request: str, number: int) -> dict[str, object]:
        """Return an answer; ``shared`` is read through the file, whose pages are those of the mapping."""
        return {
            "request": request,
            "served": number,
            "marker": self.marker,
            "passes": self.passes,
            "errors": self.errors,
            "beats": self.beats,
            "all": self.served,
            "shared": struct.unpack("<Q", SHARED.read_bytes()[:8])[0],
        }


def main() -> None:
    """Serve for ever."""
    service = Service()
    listener = socket.create_server(("0.0.0.0", PORT))
    for work in (service.check, service.beat):
        threading.Thread(target=work, daemon=True).start()
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=service.serve, args=(connection,), daemon=True).start()


sys.exit(main())
