# SPDX-License-Identifier: MIT
"""A container to measure with: holds memory whose contents are known, and notes when it did not run.

``python3 -m upgrade.bench.guest.ballast NUMBER MIB``. It ticks every few milliseconds and remembers the largest
gap between two ticks as values of the time stamp counter, which runs on across kexec: that gap is the downtime.
A process that was started anew counts from the last tick of the one before, which that one wrote to disk when it
was told to end.
"""

import json
import mmap
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from upgrade.linux import tsc_reader

PORT = 7200
TICK_SECONDS = 0.002
WORK = Path("/opt/bench")
BLOCK_BYTES = 1 << 20
# Odd, so that blocks are shifted by parts of a page: no two pages are the same up to 4 GiB.
SHIFT_BYTES = 65537


@dataclass(slots=True)
class Gaps:
    """The largest gap between two ticks; values of the time stamp counter."""

    last: int
    begin: int = 0
    end: int = 0

    def tick(self, now: int) -> None:
        """Note that the process runs at ``now``."""
        if now - self.last > self.end - self.begin:
            self.begin, self.end = self.last, now
        self.last = now

    def reset(self, now: int) -> None:
        """Forget what was before ``now``."""
        self.last, self.begin, self.end = now, 0, 0


def blocks(number: int, mib: int) -> Iterator[bytes]:
    """Yield the contents of container ``number``: random bytes, shifted by another amount in each block."""
    block = random.Random(number).randbytes(BLOCK_BYTES)
    twice = memoryview(block + block)
    for index in range(mib):
        start = index * SHIFT_BYTES % BLOCK_BYTES
        yield bytes(twice[start : start + BLOCK_BYTES])


def fill(number: int, mib: int) -> tuple[mmap.mmap, str]:
    """Return the memory and the digest of what was written to it."""
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    digest = xxhash.xxh3_128()
    for block in blocks(number, mib):
        memory.write(block)
        digest.update(block)
    return memory, digest.hexdigest()


def digest_of(memory: mmap.mmap) -> str:
    """Return the digest of what the memory holds now."""
    digest = xxhash.xxh3_128()
    view = memoryview(memory)
    for start in range(0, len(view), BLOCK_BYTES):
        digest.update(view[start : start + BLOCK_BYTES])
    view.release()
    return digest.hexdigest()


class Ballast:
    """The process itself: ticks, and answers lines on a TCP port."""

    def __init__(self, number: int, mib: int) -> None:
        self.tsc = tsc_reader()
        self.number = number
        self.begun = self.tsc()
        self.file = WORK / f"last-{number}"
        before = self._before()
        self.memory, self.digest = fill(number, mib)
        self.gaps = Gaps(before or self.tsc())
        self.gaps.tick(self.tsc())
        self.ending = False
        self.poll = select.poll()
        self.open: dict[int, socket.socket] = {}

    def _before(self) -> int:
        """Return the last tick of the process that was here before this kernel, 0 if there was none."""
        try:
            last = int(self.file.read_text())
            self.file.unlink()
        except (OSError, ValueError):
            return 0
        return last

    def run(self) -> None:
        """Tick and answer until SIGTERM."""
        signal.signal(signal.SIGTERM, self._end)
        server = socket.create_server(("0.0.0.0", PORT + self.number))
        server.setblocking(False)
        self.poll.register(server, select.POLLIN)
        while not self.ending:
            events = self.poll.poll(TICK_SECONDS * 1000)
            self.gaps.tick(self.tsc())
            for descriptor, _ in events:
                if descriptor == server.fileno():
                    self._accept(server)
                else:
                    self._answer(descriptor)
        # Written and synced only by a process that is told to end: its last tick is when it was told.
        with self.file.open("w") as file:
            file.write(str(self.gaps.last))
            file.flush()
            os.fsync(file.fileno())

    def _end(self, *_: object) -> None:
        self.ending = True

    def _accept(self, server: socket.socket) -> None:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.setblocking(False)
        self.open[connection.fileno()] = connection
        self.poll.register(connection, select.POLLIN)

    def _answer(self, descriptor: int) -> None:
        connection = self.open[descriptor]
        try:
            lines = connection.recv(4096).decode().splitlines()
            connection.sendall("".join(f"{self._reply(line)}\n" for line in lines).encode())
        except (OSError, UnicodeDecodeError):
            lines = []
        if not lines:
            self.poll.unregister(descriptor)
            self.open.pop(descriptor).close()

    def _reply(self, line: str) -> str:
        if line == "gap":
            return json.dumps(
                {
                    "pid": os.getpid(),
                    "begun": self.begun,
                    "begin": self.gaps.begin,
                    "end": self.gaps.end,
                }
            )
        if line == "mark":
            self.gaps.reset(self.tsc())
            return "{}"
        if line == "verify":
            return json.dumps({"expected": self.digest, "found": digest_of(self.memory)})
        return line  # the client outside: its own number


def ask(number: int, line: str, wait_seconds: float = 0.0) -> Any:
    """Return what a ballast on this machine answers to one line.

    :param wait_seconds: how long to try again where nothing answers
    :raises OSError: where nothing answers
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            with socket.create_connection(("127.0.0.1", PORT + number), timeout=600) as connection:
                connection.sendall(f"{line}\n".encode())
                with connection.makefile() as stream:
                    answer = stream.readline()
                if not answer:
                    raise ConnectionError("closed")
                return json.loads(answer)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    Ballast(int(sys.argv[1]), int(sys.argv[2])).run()
