# SPDX-License-Identifier: MIT
"""The line between the restore process and the command that systemd starts in place of a service.

The command restores, in the service's cgroup and with what systemd set up for it. The restore process knows what there
is to restore, and opens the network when the command says that the sockets are there.
"""

import binascii
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from upgrade import paths
from upgrade.errors import UpgradeError

MESSAGE_BYTES = 1 << 16


def address(name: str) -> Path:
    """Return where the restore process listens for a service; a socket's name must be short."""
    return paths.RUNTIME / f"unit-{binascii.crc32(name.encode()):08x}.socket"


class Line:
    """One end of it: messages of JSON."""

    def __init__(self, held: socket.socket) -> None:
        self.socket = held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @classmethod
    def call(cls, name: str) -> Self:
        """Call the process that restores a service; OSError if there is none."""
        held = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            held.connect(os.fspath(address(name)))
        except OSError:
            held.close()
            raise
        return cls(held)

    def send(self, **message: Any) -> None:
        """Send a message.

        :raises UpgradeError: if nobody is there any more
        """
        try:
            self.socket.send(json.dumps(message).encode())
        except OSError as e:
            raise UpgradeError(f"the other end is gone: {e}", subject="restore") from e

    def receive(self, timeout_s: float | None = None) -> Mapping[str, Any]:
        """Return the next message.

        :raises UpgradeError: if none comes in time, or the other end is gone
        """
        self.socket.settimeout(timeout_s)
        try:
            data = self.socket.recv(MESSAGE_BYTES)
        except TimeoutError as e:
            raise UpgradeError(f"no answer within {timeout_s} s", subject="restore") from e
        except OSError as e:
            raise UpgradeError(f"the other end is gone: {e}", subject="restore") from e
        if not data:
            raise UpgradeError("the other end is gone", subject="restore")
        found: Mapping[str, Any] = json.loads(data)
        return found


class Listener:
    """The restore process's side, before the command has called."""

    def __init__(self, name: str) -> None:
        self.path = address(name)
        self.path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(os.fspath(self.path))
        self.socket.listen(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)

    def accept(self, timeout_s: float) -> Line | None:
        """Return the line of who has called; None if nobody has within the time."""
        self.socket.settimeout(timeout_s)
        try:
            return Line(self.socket.accept()[0])
        except TimeoutError:
            return None
