# SPDX-License-Identifier: MIT
"""What the probes share: one TCP connection from outside that is never opened twice.

A probe sends a numbered request every period whether or not the last one was answered, so that requests
are under way when the machine freezes. It notes when each reply came. Standard library only.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

PERIOD_SECONDS = float(os.environ.get("PROBE_PERIOD", "0.05"))
WAIT_SECONDS = float(os.environ.get("PROBE_WAIT", "900"))
FIRST_REPLY_SECONDS = 10.0
LAST_REPLY_SECONDS = 20.0
MOST_ERRORS = 20

# Where a reply ends: the reply and how many bytes it took, or None while it is not complete.
Decode = Callable[[bytes], tuple[object, int] | None]


class Stopped(Exception):
    """SIGTERM came."""


def port(guest_port: int) -> int:
    """Return the port to connect to for a port of the guest.

    ``PROBE_PORTS`` is a list of ``PORT`` or ``GUEST:HOST``, separated by commas or blanks, or a JSON object.
    """
    text = os.environ.get("PROBE_PORTS", "").strip()
    if text.startswith("{"):
        return int(json.loads(text).get(str(guest_port), guest_port))
    pairs = [part.replace("=", ":").split(":") for part in text.replace(",", " ").split()]
    mapping = {int(pair[0]): int(pair[-1]) for pair in pairs}
    if guest_port in mapping:
        return mapping[guest_port]
    return next(iter(mapping.values())) if len(mapping) == 1 else guest_port


class Probe:
    """One connection, its requests and what came back.

    :param encode: the bytes of request number ``n``, from 0
    :param check: what is wrong with the reply to request ``n``, or None
    :param period_seconds: from one request to the next; for what has much to do for one, in an emulated machine
    """

    def __init__(
        self,
        name: str,
        guest_port: int,
        encode: Callable[[int], bytes],
        decode: Decode,
        check: Callable[[int, object], str | None],
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self.name = name
        self.period_seconds = period_seconds
        self.address = (os.environ.get("PROBE_HOST", "127.0.0.1"), port(guest_port))
        self.encode, self.decode, self.check = encode, decode, check
        self.errors: list[str] = []
        self.requests = self.replies = 0
        self.retransmits = 0
        self.largest_gap = 0.0
        self.gap_at: str | None = None
        self.connected_at: str | None = None
        self.last_reply = 0.0
        self.last_reply_wall = 0.0
        self.unsent = self.unread = b""
        self.stopping = False
        self.record: TextIO | None = None

    def main(self) -> int:
        """Probe until SIGTERM, print the findings as one line and return the exit status."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        directory = os.environ.get("PROBE_DIR")
        if directory:
            self.record = (Path(directory) / f"{self.name}.replies").open("w", buffering=1)
        try:
            connection = self._connect()
            with connection:
                self._talk(connection)
        except Stopped:
            self._error("stopped before the first reply")
        except OSError as e:
            self._error(f"connection: {e.strerror or e}")
        print(json.dumps(self.findings()), flush=True)
        return 1 if self.errors else 0

    def findings(self) -> dict[str, object]:
        """Return what the probe saw; the gap counts from the reply before it, at ``gap_at`` (UTC)."""
        return {
            "probe": self.name,
            "replies": self.replies,
            "requests": self.requests,
            "largest_gap_seconds": round(self.largest_gap, 4),
            "period_seconds": self.period_seconds,
            "gap_at": self.gap_at,
            "connected_at": self.connected_at,
            "retransmits": self.retransmits,
            "errors": self.errors,
        }

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _error(self, text: str) -> None:
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(text)

    def _connect(self) -> socket.socket:
        """Wait for a service that answers; a port forwarder accepts long before there is one."""
        deadline = time.monotonic() + WAIT_SECONDS
        why = "no answer"
        while time.monotonic() < deadline:
            if self.stopping:
                raise Stopped
            self.requests = self.replies = 0
            self.unsent = self.unread = b""
            try:
                connection = socket.create_connection(self.address, timeout=FIRST_REPLY_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setblocking(False)
                self._send(connection)
                first = time.monotonic() + FIRST_REPLY_SECONDS
                while not self.replies and time.monotonic() < first and not self.stopping:
                    select.select([connection], [], [], 0.5)
                    self._receive(connection)
                if self.replies:
                    self.connected_at = datetime.now(UTC).isoformat(timespec="milliseconds")
                    return connection
                connection.close()
            except OSError as e:
                why = str(e)
            time.sleep(0.5)
        raise OSError(f"no service at {self.address[0]}:{self.address[1]} in {WAIT_SECONDS:.0f} s: {why}")

    def _talk(self, connection: socket.socket) -> None:
        due = time.monotonic()
        while not self.stopping:
            if time.monotonic() >= due:
                self._send(connection)
                due = max(due + self.period_seconds, time.monotonic())
            self._wait(connection, due - time.monotonic())
        self._send(connection)
        deadline = time.monotonic() + LAST_REPLY_SECONDS
        while self.replies < self.requests and time.monotonic() < deadline:
            self._wait(connection, 0.2)
        if self.replies < self.requests:
            self._error(f"{self.requests - self.replies} requests without a reply at the end")
        self._note_retransmits(connection)

    def _note_retransmits(self, connection: socket.socket) -> None:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        self.retransmits = struct.unpack_from("=I", info, 100)[0]  # tcpi_total_retrans

    def _wait(self, connection: socket.socket, seconds: float) -> None:
        writing = [connection] if self.unsent else []
        select.select([connection], writing, [], max(0.0, seconds))
        self._flush(connection)
        self._receive(connection)

    def _send(self, connection: socket.socket) -> None:
        self.unsent += self.encode(self.requests)
        self.requests += 1
        self._flush(connection)

    def _flush(self, connection: socket.socket) -> None:
        if not self.unsent:
            return
        try:
            self.unsent = self.unsent[connection.send(self.unsent) :]
        except BlockingIOError:
            return

    def _receive(self, connection: socket.socket) -> None:
        try:
            got = connection.recv(1 << 16)
        except BlockingIOError:
            return
        if not got:
            raise ConnectionResetError("closed by the other side")
        self.unread += got
        while (decoded := self.decode(self.unread)) is not None:
            reply, size = decoded
            self.unread = self.unread[size:]
            self._reply(reply)

    def _reply(self, reply: object) -> None:
        now, wall = time.monotonic(), time.time()
        if self.replies and now - self.last_reply > self.largest_gap:
            self.largest_gap = now - self.last_reply
            at = datetime.fromtimestamp(self.last_reply_wall, UTC)
            self.gap_at = at.isoformat(timespec="milliseconds")
        self.last_reply, self.last_reply_wall = now, wall
        wrong = self.check(self.replies, reply)
        if wrong:
            self._error(f"request {self.replies}: {wrong}")
        if self.record:
            self.record.write(f"{self.replies} {now:.6f} {wall:.6f} {wrong or 'ok'}\n")
        self.replies += 1


class Listener(Probe):
    """A probe that mostly listens: it sends only when ``wants`` says so, and counts the pieces that come.

    :param encode: the bytes of request number ``n``, from 0
    :param check: what is wrong with piece number ``n`` of what came, or None
    """

    def __init__(
        self,
        name: str,
        guest_port: int,
        encode: Callable[[int], bytes],
        decode: Decode,
        check: Callable[[int, object], str | None],
        wants: Callable[[], bool],
    ) -> None:
        super().__init__(name, guest_port, encode, decode, check)
        self.wants = wants

    def _talk(self, connection: socket.socket) -> None:
        while not self.stopping:
            if self.wants():
                self._send(connection)
            self._wait(connection, 0.5)
        self._note_retransmits(connection)


def run(probe: Probe) -> None:
    """Run a probe as the program."""
    sys.exit(probe.main())
