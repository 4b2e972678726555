# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.process`` with real commands."""

import os
import time
from pathlib import Path

import pytest
from builders.programs import Programs

from upgrade import process
from upgrade.errors import DependencyMissing, ExitStatus, UpgradeError
from upgrade.process import CommandFailed, reading, run, run_bytes


def test_output_comes_back_apart() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_standard_input_is_empty_unless_given() -> None:
    assert run(["cat"]).stdout == ""
    assert run(["cat"], input="given").stdout == "given"
    assert run(["cat"], input="").stdout == ""


def test_a_failure_tells_the_last_lines() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 3"])
    error = caught.value
    assert (error.returncode, error.subject, error.status) == (3, "sh", ExitStatus.FAILED)
    assert error.message == "exit status 3: line 3 | line 4 | line 5 | line 6 | line 7"
    assert error.command[:2] == ["sh", "-c"]


def test_a_failure_without_errors_tells_the_output() -> None:
    with pytest.raises(CommandFailed, match="it is on stdout"):
        run(["sh", "-c", "echo it is on stdout; exit 1"])
    with pytest.raises(CommandFailed, match="no output"):
        run(["false"])


def test_a_failure_may_be_wanted() -> None:
    assert run(["sh", "-c", "exit 4"], check=False).returncode == 4


def test_a_signal_is_a_failure() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "kill -9 $$"])
    assert caught.value.returncode == -9


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(DependencyMissing) as caught:
        run(["/nowhere/kexec", "--load"])
    error = caught.value
    assert (error.subject, error.hint) == ("kexec", "apt-get install kexec-tools")
    assert error.status == ExitStatus.DEPENDENCY_MISSING
    with pytest.raises(DependencyMissing, match="frobnicate"):
        run_bytes(["frobnicate"], input=b"")


def test_a_missing_directory_is_not_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises((UpgradeError, OSError)) as caught:
        run(["true"], cwd=tmp_path / "missing")
    assert not isinstance(caught.value, DependencyMissing)


def test_a_program_that_may_not_be_executed_is_an_error_for_users(programs: Programs) -> None:
    (programs.directory / "nft").write_text("#!/bin/sh\n")
    with pytest.raises(UpgradeError, match="nft"):
        run(["nft"])


def test_time_runs_out() -> None:
    started = time.monotonic()
    with pytest.raises(UpgradeError, match=r"no answer within 0\.1 s: sleep 20"):
        run(["sleep", "20"], timeout=0.1)
    with pytest.raises(UpgradeError, match=r"no answer within 0\.1 s"):
        run_bytes(["sleep", "20"], input=b"", timeout=0.1)
    assert time.monotonic() - started < 5


def test_the_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_THE_USER", "x")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("TERM", "vt100")
    monkeypatch.setenv("PATH", "/nowhere")
    seen = dict(line.split("=", 1) for line in run(["env"], env={"EXTRA": "1"}).stdout.splitlines())
    assert seen.keys() - {"HOME", "TMPDIR", "_", "PWD", "SHLVL"} == {"PATH", "LANG", "TERM", "EXTRA"}
    assert (seen["PATH"], seen["LANG"], seen["TERM"]) == (process.PATH, "C.UTF-8", "vt100")


def test_bytes_that_are_no_text() -> None:
    assert run(["printf", r"a\377b"]).stdout == "a\ufffdb"


def test_a_filter_changes_no_byte() -> None:
    data = bytes(range(256)) * 4096
    assert run_bytes(["cat"], input=data) == data
    with pytest.raises(CommandFailed, match="not in gzip format"):
        run_bytes(["gzip", "-dc"], input=b"nothing")


def test_paths_and_directories_are_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    assert run(["cat", tmp_path / "file"]).stdout == "content"
    assert run(["pwd"], cwd=tmp_path).stdout == f"{os.path.realpath(tmp_path)}\n"


@pytest.mark.parametrize("program", sorted(process.PACKAGES))
def test_every_package_can_be_named(program: str) -> None:
    assert process.missing(f"/usr/bin/{program}").hint == f"apt-get install {process.PACKAGES[program]}"


def test_a_filter_is_read_as_its_output_comes() -> None:
    data = os.urandom(1 << 20)  # more than a pipe holds, both ways
    with reading(["cat"], input=data) as stream:
        assert stream.read(5) == data[:5]
        assert stream.read() == data[5:]


def test_a_filter_is_ended_if_nobody_wants_the_rest(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with reading(["sh", "-c", f"echo $$ >{note}; exec cat /dev/zero"], input=b"") as stream:
        assert stream.read(1) == b"\0"
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_filter_that_is_not_installed_is_named() -> None:
    with pytest.raises(DependencyMissing), reading(["no-such-filter"], input=b""):
        pass
