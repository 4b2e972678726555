# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.config``: what is not understood is refused, with file, key and a near name."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upgrade.config import Config
from upgrade.errors import ExitStatus, UsageError
from upgrade.host import Host

ETC = "etc/seamless-upgrade"
LIB = "usr/lib/seamless-upgrade"


def put(root: Path, file: str, text: str) -> Path:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(root: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        Config.load(Host(root))
    assert caught.value.status == ExitStatus.USAGE
    return caught.value


def test_nothing_configured_is_the_default(tmp_path: Path) -> None:
    assert Config.load(Host(tmp_path)) == Config()


def test_later_files_win(tmp_path: Path) -> None:
    put(
        tmp_path,
        f"{LIB}/config.toml",
        "dump_timeout_seconds = 1.0\nfreeze_timeout_seconds = 1.0\nnudge = false",
    )
    put(tmp_path, f"{LIB}/config.d/90-late.toml", "freeze_timeout_seconds = 2.0\nwriteback_bytes = 5")
    put(tmp_path, f"{ETC}/config.toml", "writeback_bytes = 6\nwriteback_timeout_seconds = 3")
    put(tmp_path, f"{ETC}/config.d/10-a.toml", "writeback_timeout_seconds = 4")
    put(tmp_path, f"{ETC}/config.d/20-b.toml", "writeback_timeout_seconds = 5")
    put(tmp_path, f"{ETC}/config.d/30-c.conf", "writeback_timeout_seconds = 6")
    assert Config.load(Host(tmp_path)) == Config(
        dump_timeout_seconds=1.0,
        freeze_timeout_seconds=2.0,
        writeback_bytes=6,
        writeback_timeout_seconds=5.0,
        nudge=False,
    )


def test_cold_starts_are_commands_by_cgroup(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/config.toml", '[cold_start]\n"/workload/redis" = ["redis-server", "--port", "1"]')
    assert Config.load(Host(tmp_path)).cold_start == {"/workload/redis": ("redis-server", "--port", "1")}


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = put(tmp_path, f"{ETC}/config.d/x.toml", "freeze_timeout_second = 3.0")
    error = refused(tmp_path)
    assert error.subject == str(file)
    assert "'freeze_timeout_second'" in error.message
    assert error.hint == "did you mean 'freeze_timeout_seconds'?"


def test_a_key_like_no_other_is_refused_with_all(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/config.toml", "qqqq = 1")
    assert "dump_timeout_seconds" in str(refused(tmp_path).hint)


@pytest.mark.parametrize(
    "line",
    [
        'freeze_timeout_seconds = "10"',
        "freeze_timeout_seconds = true",
        "writeback_bytes = 1.5",
        "writeback_bytes = true",
        "nudge = 1",
        'clocks = "stop"',
        'nudge = "yes"',
        "cold_start = []",
        'cold_start = {"/a" = "redis-server"}',
        'cold_start = {"/a" = []}',
        'cold_start = {"/a" = ["x", 1]}',
        "[dump_timeout_seconds]\nx = 1",
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, line: str) -> None:
    put(tmp_path, f"{ETC}/config.toml", line)
    assert "must be" in refused(tmp_path).message


def test_a_wrong_value_names_its_file_and_key(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/config.toml", "nudge = true")
    file = put(tmp_path, f"{ETC}/config.d/50-site.toml", "nudge = 1")
    said = str(refused(tmp_path))
    assert str(file) in said
    assert "nudge" in said


@pytest.mark.parametrize(
    "key", ["freeze_timeout_seconds", "dump_timeout_seconds", "writeback_timeout_seconds"]
)
def test_a_time_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    for number in ("-1.0", "nan", "inf", "-inf"):
        put(tmp_path, f"{ETC}/config.toml", f"{key} = {number}")
        assert key in str(refused(tmp_path))


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/config.toml", "writeback_bytes = -1")
    assert "writeback_bytes" in str(refused(tmp_path))


@pytest.mark.parametrize("content", [b"nudge =", b"nudge = true\nnudge = false", b"\xff\xfe", b"= 1"])
def test_what_is_no_toml_is_refused_with_its_file(tmp_path: Path, content: bytes) -> None:
    file = put(tmp_path, f"{ETC}/config.toml", "")
    file.write_bytes(content)
    error = refused(tmp_path)
    assert error.subject == str(file)
    assert error.message.startswith("is not valid TOML")


@given(st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, f"{ETC}/config.toml", "").write_bytes(content)
    with suppress(UsageError):
        assert isinstance(Config.load(Host(tmp_path)), Config)
