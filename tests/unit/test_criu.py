# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.criu`` against a fake that speaks the same RPC."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders.criu import FakeCriu, Step
from builders.programs import Programs

from upgrade.criu import Criu, CriuError, CriuVersion, log_errors, messages
from upgrade.errors import DependencyMissing


def options(**values: Any) -> Any:
    return messages().criu_opts(images_dir_fd=-1, **values)


def yes(_script: str, _pid: int) -> bool:
    return True


@pytest.mark.parametrize(
    ("version", "text"),
    [([4, 1, 1], "4.1.1"), ([4, 2, 0], "4.2"), ([4, 0, None], "4.0"), ([3, 17, 1], "3.17.1")],
)
def test_the_version_is_asked_for(criu: FakeCriu, version: list[int | None], text: str) -> None:
    criu.on("VERSION", ["answer", {"version": version}])
    with Criu() as client:
        assert str(client.version()) == text
    assert criu.seen()[0]["arguments"][0] == "swrk"
    assert client.process.returncode == 0


def test_a_parent_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(
        "(00.1) Error (criu/page-xfer.c:408): No parent image found, though parent directory is set: Success\n"
        "(00.2) Error (criu/a.c:1): first\n"
    )
    assert log_errors(log) == ["Error (criu/a.c:1): first"]


def test_versions_are_compared_as_a_whole() -> None:
    assert CriuVersion(4, 1, 1) == CriuVersion(4, 1, 1) != CriuVersion(4, 1, 0)


def test_each_notification_is_handed_on_and_answered(criu: FakeCriu) -> None:
    criu.on("DUMP", ["notify", "pre-dump", 0], ["notify", "post-dump", 500], ["answer", {}])
    heard: list[tuple[str, int]] = []

    def notify(script: str, pid: int) -> bool:
        heard.append((script, pid))
        return script != "post-dump"

    with Criu() as client:
        client.dump(options(pid=500, tcp_established=True), notify)
    assert heard == [("pre-dump", 0), ("post-dump", 500)]
    assert criu.answers() == {"pre-dump": True, "post-dump": False}
    assert {note["reply"] for note in criu.seen() if "reply" in note} == {"NOTIFY"}
    sent = criu.options("DUMP")
    assert (sent.pid, sent.tcp_established) == (500, True)


def test_a_restore_returns_the_root_s_process_id(criu: FakeCriu) -> None:
    criu.on("RESTORE", ["notify", "post-restore", 4711], ["answer", {"pid": 4711}])
    with Criu() as client:
        assert client.restore(options(), yes) == 4711


def test_descriptors_that_come_along_are_closed(criu: FakeCriu) -> None:
    criu.on("RESTORE", *[["descriptor"]] * 5, ["answer", {"pid": 1}])
    with Criu() as client:
        before = len(os.listdir("/proc/self/fd"))
        client.restore(options(), yes)
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            {"message": "Can't dump half of a shared mapping\n", "errno": 22},
            "Can't dump half of a shared mapping",
        ),
        ({"errno": 2}, "No such file or directory"),
        ({}, "failed without saying why"),
        ({"message": "  \n"}, "failed without saying why"),
    ],
)
def test_a_failure_says_why(criu: FakeCriu, answer: dict[str, Any], text: str) -> None:
    criu.on("DUMP", ["notify", "pre-dump", 0], ["answer", {"success": False, **answer}])
    with pytest.raises(CriuError) as caught, Criu() as client:
        client.dump(options(), yes)
    assert caught.value.message == text
    assert caught.value.subject == "criu"


@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ([["die", 3]], "3"),
        ([["kill"]], "-9"),
        ([["notify", "pre-dump", 0], ["die", 1]], "1"),
        ([["notify", "pre-dump", 0], ["kill"]], "-9"),
    ],
)
def test_a_sudden_end_is_an_error_with_its_status(criu: FakeCriu, steps: list[Step], status: str) -> None:
    criu.on("DUMP", *steps)
    with pytest.raises(CriuError, match=rf"ended without an answer \(status {status}\)"), Criu() as client:
        client.dump(options(), yes)


def test_an_end_before_the_request_was_read_is_an_error_too(criu: FakeCriu) -> None:
    """The kernel tells that with ECONNRESET or EPIPE: the request was left unread."""
    criu.dies_at_once()
    for wait in (True, False):  # so that sending fails; so that, as a rule, receiving fails
        with Criu() as client:
            if wait:
                client.process.wait()
            with pytest.raises(CriuError, match=r"ended without an answer \(status 7\)"):
                client.version()


def test_closing_the_line_tells_criu_to_roll_back(criu: FakeCriu) -> None:
    criu.on("DUMP", ["notify", "post-dump", 500], ["answer", {}])

    class Stop(Exception):
        pass

    def stop(_script: str, _pid: int) -> bool:
        raise Stop

    with pytest.raises(Stop), Criu() as client:
        client.dump(options(), stop)
    assert client.process.returncode == 1
    assert criu.seen()[-1] == {"eof": "post-dump"}


def test_an_unused_client_leaves_nothing_behind(criu: FakeCriu) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Criu() as client:
        pass
    assert client.process.returncode == 0
    assert criu.seen()[-1] == {"eof": "request"}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_criu_names_its_package(programs: Programs) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DependencyMissing) as caught:
        Criu()
    assert caught.value.hint == "apt-get install criu"
    assert len(os.listdir("/proc/self/fd")) == before
    assert programs.calls() == []


def test_its_environment_is_scrubbed(criu: FakeCriu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRIU_CONFIG_FILE", "/home/somebody/criu.conf")
    with Criu() as client:
        client.version()
    assert "CRIU_CONFIG_FILE" not in criu.seen()[0]["environment"]


def test_the_messages_alone_are_loaded_and_are_pycriu_s_own() -> None:
    code = (
        "import sys, upgrade.criu\n"
        "rpc = upgrade.criu.messages()\n"
        "assert rpc is upgrade.criu.messages()\n"
        "assert 'pycriu' not in sys.modules and 'pycriu.images' not in sys.modules\n"
        "import pycriu.images, pycriu.criu\n"
        "assert sys.modules['pycriu.criu'].rpc is rpc\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)})


def test_a_missing_pycriu_names_its_package(tmp_path: Path) -> None:
    (tmp_path / "pycriu").mkdir()
    code = (
        "import sys, upgrade.criu\n"
        "try:\n    upgrade.criu.messages()\n"
        "except upgrade.errors.DependencyMissing as e:\n    print(e.hint)\n"
    )
    bare = [p for p in sys.path if not (Path(p) / "pycriu").exists()]
    xxhash = [str(tmp_path)]
    for paths in (bare, xxhash + bare):
        done = subprocess.run(
            [sys.executable, "-IS", "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "apt-get install python3-pycriu\n"


def test_the_errors_of_a_log_are_found(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_bytes(
        b"(00.000001) Version: 4.1.1\n"
        b"(00.010000) Warn  (criu/x.c:1): careful\n"
        b"(00.012345) Error (criu/sk-unix.c:884): unix: Can't dump half of pair \xff\n"
        b"(00.012346) pie: 7: Error (criu/pie/restorer.c:1): second\n"
        b"(00.012347) Error (criu/cr-dump.c:1): third\n"
        b"(00.012348) Error (criu/cr-dump.c:2): fourth\n"
    )
    assert log_errors(log) == [
        "Error (criu/sk-unix.c:884): unix: Can't dump half of pair \ufffd",
        "pie: 7: Error (criu/pie/restorer.c:1): second",
        "Error (criu/cr-dump.c:1): third",
    ]
    assert log_errors(log, limit=1) == log_errors(log)[:1]
    assert log_errors(tmp_path / "missing") == []
