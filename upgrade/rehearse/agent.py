# SPDX-License-Identifier: MIT
"""The way into a guest: QEMU's guest agent, spoken to over a Unix socket.

It needs no network, and it comes back by itself after a kexec: the socket belongs to QEMU, which stays. A
client must expect silence while there is no kernel, and half an answer of the old one before the first of
the new; :meth:`Agent.sync` gets over both.
"""

import base64
import json
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential

from upgrade.errors import UpgradeError
from upgrade.process import PATH

ANSWER_SECONDS = 30.0
CHUNK_BYTES = 1 << 18
DELIMITER = b"\xff"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.5
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root"}


class AgentSilent(UpgradeError):
    """The agent did not answer in time, or its answer broke off: perhaps there is no kernel right now."""


class AgentError(UpgradeError):
    """The agent refused a command."""


class CommandLost(UpgradeError):
    """A command was running in the guest when its kernel went away."""


@dataclass(slots=True)
class Agent:
    """A client of the agent behind ``path``; it connects when it is first used."""

    path: Path
    _connection: socket.socket | None = field(default=None, init=False)
    _received: bytes = field(default=b"", init=False)
    _ids: "count[int]" = field(default_factory=lambda: count(time.time_ns() % 1_000_000_000), init=False)

    def close(self) -> None:
        """Hang up; the next command connects again."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._received = None, b""

    def sync(self, timeout: float = ANSWER_SECONDS) -> None:
        """Throw away what was said before and make sure that somebody answers now.

        :raises AgentSilent: after ``timeout`` seconds
        """
        deadline = time.monotonic() + timeout
        number = next(self._ids)
        try:
            self._open(deadline)
            self._send("guest-sync-delimited", {"id": number}, deadline, before=DELIMITER)
            while True:
                self._until(DELIMITER, deadline)
                if json.loads(self._until(b"\n", deadline)).get("return") == number:
                    return
        except (OSError, ValueError) as e:
            self.close()
            raise AgentSilent("the guest agent does not answer", subject=str(self.path)) from e

    def call(
        self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = ANSWER_SECONDS
    ) -> Any:
        """Return the agent's answer to one command.

        :raises AgentError: where it refuses
        :raises AgentSilent: after ``timeout`` seconds
        """
        if self._connection is None:
            self.sync(timeout)
        deadline = time.monotonic() + timeout
        try:
            self._send(command, arguments or {}, deadline)
            answer = json.loads(self._until(b"\n", deadline))
        except (OSError, ValueError) as e:
            self.close()
            raise AgentSilent(f"no answer to {command}", subject=str(self.path)) from e
        if "error" in answer:
            raise AgentError(answer["error"].get("desc", "no reason given"), subject=command)
        return answer["return"]

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> CompletedProcess[bytes]:
        """Run a program in the guest to its end.

        :raises UpgradeError: after ``timeout`` seconds; the program goes on
        :raises CommandLost: where the guest got a new kernel meanwhile
        """
        pid = self.start(argv, input=input, env=env)
        status = self._wait(pid, argv, timeout)
        code = status["exitcode"] if "exitcode" in status else -status.get("signal", 1)
        output = (base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data"))
        return CompletedProcess(list(argv), code, *output)

    def start(
        self, argv: Sequence[str], *, input: bytes | None = None, env: Mapping[str, str] | None = None
    ) -> int:
        """Start a program in the guest and return its PID."""
        arguments = {
            "path": argv[0],
            "arg": list(argv[1:]),
            "env": [f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()],
            "capture-output": True,
        }
        if input is not None:
            arguments["input-data"] = base64.b64encode(input).decode()
        return int(self.call("guest-exec", arguments)["pid"])

    def read(self, path: str) -> bytes:
        """Return a file's contents; files of ``/proc`` too."""
        parts = []
        with self._file(path, "r") as handle:
            while True:
                part = self.call("guest-file-read", {"handle": handle, "count": CHUNK_BYTES})
                parts.append(base64.b64decode(part["buf-b64"]))
                if part["eof"] or not part["count"]:
                    return b"".join(parts)

    @contextmanager
    def _file(self, path: str, mode: str) -> Iterator[int]:
        """Open a file of the guest.

        :raises CommandLost: where the kernel is replaced meanwhile: the next one's agent knows no such handle
        """
        handle: int = self.call("guest-file-open", {"path": path, "mode": mode})
        try:
            try:
                yield handle
            finally:
                self.call("guest-file-close", {"handle": handle})
        except AgentError as e:
            if "has not been found" not in e.message:
                raise
            raise CommandLost("the kernel went away while the file was open", subject=path) from e

    def append(self, path: str, content: bytes) -> None:
        """Write ``content`` at the end of a file that exists (the agent makes new files world-writable)."""
        with self._file(path, "a") as handle:
            for start in range(0, len(content), CHUNK_BYTES):
                part = base64.b64encode(content[start : start + CHUNK_BYTES]).decode()
                self.call("guest-file-write", {"handle": handle, "buf-b64": part})

    def _wait(self, pid: int, argv: Sequence[str], timeout: float) -> Any:
        """Return the status of a program that has ended. The agent cannot wait: ask again and again."""
        attempts = Retrying(
            stop=stop_after_delay(timeout),
            wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS, exp_base=1.5, max=LONGEST_PAUSE_SECONDS),
            retry=retry_if_result(lambda status: not status["exited"]),
        )
        try:
            return attempts(self.call, "guest-exec-status", {"pid": pid})
        except AgentError as e:
            raise CommandLost(f"its kernel went away: {shlex.join(argv)}", subject="guest") from e
        except RetryError as e:
            raise UpgradeError(f"did not end in time: {shlex.join(argv)}", subject="guest") from e

    def _open(self, deadline: float) -> None:
        self.close()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._connection.settimeout(remaining(deadline))
        self._connection.connect(str(self.path))

    def _send(self, command: str, arguments: Mapping[str, Any], deadline: float, before: bytes = b"") -> None:
        assert self._connection is not None
        self._connection.settimeout(remaining(deadline))
        message = json.dumps({"execute": command, "arguments": arguments}).encode()
        self._connection.sendall(before + message + b"\n")

    def _until(self, mark: bytes, deadline: float) -> bytes:
        """Return what arrives before ``mark``."""
        assert self._connection is not None
        while mark not in self._received:
            self._connection.settimeout(remaining(deadline))
            more = self._connection.recv(1 << 16)
            if not more:
                raise ConnectionError("closed")
            self._received += more
        head, self._received = self._received.split(mark, 1)
        return head


def remaining(deadline: float) -> float:
    """Return the seconds until ``deadline``, for a socket: zero would mean not to wait at all."""
    return max(deadline - time.monotonic(), 0.001)
