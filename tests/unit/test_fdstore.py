# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.fdstore`` against a socket that plays systemd."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from upgrade.restore import fdstore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Return the socket that messages arrive at."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = str(tmp_path / "notify") if request.param == "path" else f"@seamless-{os.getpid()}-{id(tmp_path)}"
    line.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
    line.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    return line


def test_a_descriptor_is_systemd_s_when_store_returns(systemd: socket.socket) -> None:
    ours, theirs = os.pipe()
    assert fdstore.store("task.0.7", ours)
    os.close(ours)
    message, (kept,), _, _ = socket.recv_fds(systemd, 1000, 4)
    assert message.decode().split("\n") == ["FDSTORE=1", "FDNAME=task.0.7", "FDPOLL=0"]
    os.write(theirs, b"x")
    assert os.read(kept, 1) == b"x"
    os.close(kept)
    os.close(theirs)


def test_what_is_told_without_descriptors(systemd: socket.socket) -> None:
    fdstore.ready("2 containers")
    assert fdstore.remove("task.0.7")
    assert systemd.recv(1000) == b"READY=1\nSTATUS=2 containers"
    assert systemd.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=task.0.7"


def test_a_barrier_ends_when_systemd_has_come_to_it(systemd: socket.socket) -> None:
    passed = []

    def wait() -> None:
        fdstore.barrier()
        passed.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    systemd.settimeout(20)
    message, (theirs,), _, _ = socket.recv_fds(systemd, 1000, 4)
    assert message == b"BARRIER=1"
    assert not passed
    os.close(theirs)
    waiting.join(20)
    assert passed


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not fdstore.notify("READY=1")
    fdstore.barrier()


def inherited(pid: str, count: str, names: str) -> str:
    """Return what a process says that was started with descriptors from 3 on."""
    code = (
        "import os, sys\n"
        "if sys.argv[1] == 'mine': os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from upgrade.restore import fdstore\n"
        "found = fdstore.inherited()\n"
        "print(found, [os.get_inheritable(fd) for fd in found.values()], fdstore.inherited())\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "LISTEN_PID": pid, "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
    command = ["sh", "-c", 'exec "$0" "$@" 3</dev/null 4</dev/null', sys.executable, "-c", code, pid]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_descriptors_come_by_name_and_once() -> None:
    assert inherited("mine", "2", "listen.0:task.0.7") == "{'listen.0': 3, 'task.0.7': 4} [False, False] {}"


def test_descriptors_of_another_process_are_not_ours() -> None:
    assert inherited("1", "2", "listen.0:task.0.7") == "{} [] {}"
