# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.host``."""

import os
import threading
from pathlib import Path

import pytest

from upgrade.host import Host


def test_paths_lie_below_the_root(tmp_path: Path) -> None:
    assert Host(tmp_path).path("/proc/cmdline") == tmp_path / "proc" / "cmdline"
    assert Host().path("/proc/cmdline") == Path("/proc/cmdline")


def test_only_newlines_at_the_end_are_cut(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(" one\n\n two \n\n")
    assert Host(tmp_path).read("/a") == " one\n\n two "


def test_bytes_that_are_no_text_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "comm").write_bytes(b"ab\xffcd\n")
    assert Host(tmp_path).read("/comm") == "ab\ufffdcd"


def test_a_default_is_for_what_cannot_be_read(tmp_path: Path) -> None:
    host = Host(tmp_path)
    (tmp_path / "there").write_text("")
    assert host.read_or("/there", "default") == ""
    assert host.read_or("/missing", "default") == "default"
    assert host.read_or("/", "default") == "default"
    assert host.read_or("/there/below", "default") == "default"
    with pytest.raises(FileNotFoundError):
        host.read("/missing")


def test_an_attribute_is_written_at_once_and_not_made(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "attribute")
    got: list[bytes] = []
    fd = os.open(tmp_path / "attribute", os.O_RDWR)
    Host(tmp_path).write("/attribute", "on")
    reader = threading.Thread(target=lambda: got.append(os.read(fd, 100)))
    reader.start()
    reader.join(5)
    os.close(fd)
    assert got == [b"on"]
    with pytest.raises(FileNotFoundError):
        Host(tmp_path).write("/missing", "on")
    assert not (tmp_path / "missing").exists()


def test_listing_what_is_not_there(tmp_path: Path) -> None:
    host = Host(tmp_path)
    (tmp_path / "d").mkdir()
    for name in ("b", "a", "c"):
        (tmp_path / "d" / name).touch()
    assert host.list("/d") == ["a", "b", "c"]
    assert host.list("/missing") == []
    assert host.list("/d/a") == []
    assert host.exists("/d/a")
    assert not host.exists("/d/z")


def test_processes_are_the_numbers_of_proc(tmp_path: Path) -> None:
    for name in ("1", "42", "self", "4x", "sys"):
        (tmp_path / "proc" / name).mkdir(parents=True)
    assert list(Host(tmp_path).pids()) == [1, 42]


def test_the_real_machine_is_read() -> None:
    assert Host().release() == os.uname().release
    assert os.getpid() in list(Host().pids())
    assert Host().command_line() == Path("/proc/cmdline").read_text().strip("\n")
