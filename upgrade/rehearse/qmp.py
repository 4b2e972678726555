# SPDX-License-Identifier: MIT
"""Orders to QEMU itself (QMP)."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRWPair
from pathlib import Path
from typing import Any

from upgrade.errors import UpgradeError

ANSWER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Monitor:
    """An open connection."""

    stream: BufferedRWPair

    @classmethod
    @contextmanager
    def connect(cls, path: Path) -> Iterator["Monitor"]:
        """Connect to QEMU; it talks to one client at a time.

        :raises UpgradeError: where QEMU does not answer, also later
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
                connection.settimeout(ANSWER_SECONDS)
                connection.connect(str(path))
                with connection.makefile("rwb") as stream:
                    monitor = cls(stream)
                    monitor.receive("QMP")
                    monitor.command("qmp_capabilities")
                    yield monitor
        except (OSError, ValueError) as e:
            raise UpgradeError(f"QEMU does not answer: {e}", subject=str(path)) from e

    def command(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Return QEMU's answer to one command.

        :raises UpgradeError: where QEMU refuses
        """
        self.stream.write(json.dumps({"execute": name, "arguments": arguments or {}}).encode() + b"\n")
        self.stream.flush()
        return self.receive("return")["return"]

    def event(self, name: str) -> None:
        """Wait until QEMU tells of something."""
        while self.receive("event")["event"] != name:
            pass

    def receive(self, key: str) -> dict[str, Any]:
        """Return the next message that has a ``key``; others are of no interest."""
        while True:
            message: dict[str, Any] = json.loads(self.stream.readline())
            if "error" in message:
                raise UpgradeError(message["error"]["desc"], subject="QEMU")
            if key in message:
                return message
