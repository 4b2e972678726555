# SPDX-License-Identifier: MIT
"""The client of the guest agent, against an agent that misbehaves as a kernel that is replaced makes it."""

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from upgrade.errors import UpgradeError
from upgrade.rehearse.agent import Agent, AgentError, AgentSilent, CommandLost

Answer = dict[str, Any] | bytes | None


class FakeAgent:
    """An agent with a file system and programs of our choice."""

    def __init__(self, path: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.programs: dict[int, list[dict[str, Any]]] = {}
        self.started: list[dict[str, Any]] = []
        self.before_sync = b""
        self.override: Callable[[str, dict[str, Any]], Answer] = lambda command, arguments: None
        self.opened: dict[int, str] = {}
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                for line in stream:
                    request = json.loads(line.lstrip(b"\xff"))
                    answer = self.answer(request["execute"], request["arguments"])
                    if answer == b"":
                        break
                    if answer is not None:
                        stream.write(
                            answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n"
                        )
                        stream.flush()

    def answer(self, command: str, arguments: dict[str, Any]) -> Answer:
        overridden = self.override(command, arguments)
        if overridden is not None:
            return None if overridden == b"silence" else overridden
        if command == "guest-sync-delimited":
            return self.before_sync + b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n"
        if command == "guest-exec":
            self.started.append(arguments)
            return {"return": {"pid": 7}}
        if command == "guest-exec-status":
            states = self.programs[arguments["pid"]]
            return {"return": states.pop(0) if len(states) > 1 else states[0]}
        return {"return": self.file(command, arguments)}

    def file(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "guest-file-open":
            handle = len(self.opened) + 1
            self.opened[handle] = arguments["path"]
            return handle
        path = self.opened[arguments["handle"]]
        if command == "guest-file-read":
            part = self.files[path][: arguments["count"]]
            self.files[path] = self.files[path][len(part) :]
            return {"count": len(part), "buf-b64": base64.b64encode(part).decode(), "eof": not part}
        if command == "guest-file-write":
            self.files[path] = self.files.get(path, b"") + base64.b64decode(arguments["buf-b64"])
            return {"count": 0, "eof": False}
        return {}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeAgent]:
    agent = FakeAgent(tmp_path / "agent")
    yield agent
    agent.server.close()


@pytest.fixture
def agent(fake: FakeAgent, tmp_path: Path) -> Iterator[Agent]:
    client = Agent(tmp_path / "agent")
    yield client
    client.close()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_run(fake: FakeAgent, agent: Agent) -> None:
    ended = {"exited": True, "exitcode": 3, "out-data": encoded(b"out\xff"), "err-data": encoded(b"err")}
    fake.programs[7] = [{"exited": False}, {"exited": False}, ended]
    done = agent.run(["cat", "-n"], timeout=5, input=b"in", env={"A": "b"})
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\xff", b"err")
    assert fake.started[0]["path"] == "cat"
    assert fake.started[0]["arg"] == ["-n"]
    assert fake.started[0]["input-data"] == encoded(b"in")
    assert "A=b" in fake.started[0]["env"]


def test_a_signal_is_a_negative_status(fake: FakeAgent, agent: Agent) -> None:
    fake.programs[7] = [{"exited": True, "signal": 9}]
    assert agent.run(["sleep"], timeout=5).returncode == -9


def test_run_takes_too_long(fake: FakeAgent, agent: Agent) -> None:
    fake.programs[7] = [{"exited": False}]
    with pytest.raises(UpgradeError, match="did not end in time: sleep 9"):
        agent.run(["sleep", "9"], timeout=0.1)


def test_program_that_went_away_with_its_kernel(fake: FakeAgent, agent: Agent) -> None:
    gone: Answer = {"error": {"class": "GenericError", "desc": "PID 7 does not exist"}}
    fake.override = lambda command, _: gone if command == "guest-exec-status" else None
    with pytest.raises(CommandLost):
        agent.run(["kexec", "-e"], timeout=5)


def test_refusal_of_the_agent(fake: FakeAgent, agent: Agent) -> None:
    refused: Answer = {"error": {"class": "GenericError", "desc": "No such file"}}
    fake.override = lambda command, _: refused if command == "guest-file-open" else None
    with pytest.raises(AgentError, match="No such file"):
        agent.read("/nowhere")


@pytest.mark.parametrize("refused", [("guest-file-read", "guest-file-close"), ("guest-file-close",)])
def test_file_that_went_away_with_its_kernel(fake: FakeAgent, agent: Agent, refused: tuple[str, ...]) -> None:
    """The agent of the next kernel does not know the handle that the last one gave."""
    fake.files["/a"] = b"content"
    unknown: Answer = {"error": {"class": "GenericError", "desc": "handle '1244' has not been found"}}
    fake.override = lambda command, _: unknown if command in refused else None
    with pytest.raises(CommandLost):
        agent.read("/a")


def test_sync_skips_what_the_old_kernel_left(fake: FakeAgent, agent: Agent) -> None:
    fake.before_sync = b'{"return": {"pi\xff{"return": 1}\n{"return": "half'
    agent.sync(timeout=5)


def test_half_an_answer_is_silence_and_the_next_call_starts_anew(fake: FakeAgent, agent: Agent) -> None:
    fake.files["/a"] = b"content"
    agent.sync(timeout=5)
    fake.override = lambda command, _: b'{"return": \n' if command == "guest-file-open" else None
    with pytest.raises(AgentSilent):
        agent.read("/a")
    fake.override = lambda command, _: None
    assert agent.read("/a") == b"content"


def test_silence_is_noticed_in_time(fake: FakeAgent, agent: Agent) -> None:
    fake.override = lambda command, _: b"silence"
    with pytest.raises(AgentSilent):
        agent.sync(timeout=0.1)


def test_qemu_hangs_up(fake: FakeAgent, agent: Agent) -> None:
    fake.override = lambda command, _: b""
    with pytest.raises(AgentSilent):
        agent.sync(timeout=5)


def test_no_qemu(tmp_path: Path) -> None:
    with pytest.raises(AgentSilent):
        Agent(tmp_path / "none").sync(timeout=0.1)


def test_files_longer_than_one_message(fake: FakeAgent, agent: Agent) -> None:
    content = bytes(range(256)) * 3000
    agent.append("/big", content)
    assert fake.files["/big"] == content
    assert agent.read("/big") == content
