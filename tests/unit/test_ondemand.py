# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.ondemand`` with the real page server and real tasks."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.lazy import Manager, result, start_task, write_dump
from builders.programs import Programs
from builders.session import container, dumped, session

from upgrade import paths
from upgrade.engines.base import Container
from upgrade.restore import ondemand
from upgrade.restore.ondemand import Memory, PageService
from upgrade.restore.restorer import work_directory
from upgrade.session import Dumped
from upgrade.userfaultfd import PAGE_BYTES

BASE = 0x200000000000
PAGES = 3000
RUNS = [(BASE + PAGE_BYTES, PAGES)]
MAPS = [(BASE, PAGES + 64)]
PID = 4242


@pytest.fixture
def host(machine: Machine, here: Path, programs: Programs) -> Machine:
    """Return a machine with userfaultfd and memory."""
    machine.file(ondemand.USERFAULTFD, "0")
    programs.add("systemctl", "echo inactive")
    machine.file("/proc/meminfo", "MemTotal:  9 kB\nMemAvailable:  1048576 kB")
    return machine


def kept(number: int, **members: Any) -> Dumped:
    """Return a container whose pages are in the frame map, with its images."""
    images = paths.STORE / f"container-{number}"
    images.mkdir()
    write_dump(images, PID, RUNS)
    one = members.pop("container", container(f"/c{number}"))
    return dumped(one, number, in_place=True, frame_files=(f"pages-{PID}.img",), **members)


def service(host: Machine, *containers: Dumped, **members: Any) -> tuple[PageService, list[str]]:
    said: list[str] = []
    record = session(containers, **{"restore": "lazy", "restore_timeout_seconds": 20, **members})
    return PageService(host.host, record, work_directory, said.append), said


def test_memory_comes_from_the_server(host: Machine, programs: Programs) -> None:
    first, second = kept(0), kept(1)
    pages, said = service(host, first, second)
    pages.start()
    with Manager(paths.PAGES) as manager:
        assert pages.serves(first)
        assert pages.serves(second)
        tasks = [
            start_task(work_directory(each), PID, "scattered", maps=MAPS, runs=RUNS)
            for each in (first, second)
        ]
        found = pages.wait()
        assert [result(task) for task in tasks] == ["right"] * 2
        assert manager.ended.wait(20)
    assert set(found) == {"/c0", "/c1"}
    assert all(memory.error is None and memory.complete_ns for memory in found.values())
    pages.end(said.append)
    assert not paths.PAGES.exists()
    assert pages.problems == said == []


@pytest.mark.parametrize(
    ("mode", "members"),
    [("eager", {}), ("lazy", {"in_place": False}), ("lazy", {"container": "user namespace"})],
)
def test_what_cannot_be_restored_on_demand_is_not(
    host: Machine, programs: Programs, mode: str, members: dict[str, Any]
) -> None:
    if "container" in members:
        data = {"namespaces": {"NEWPID": "", "NEWUSER": ""}}
        members = {"container": Container("web", "runc", "/web", 5, False, False, data)}
    one = replace(kept(0), **members)
    pages, said = service(host, one, restore=mode)
    pages.start()
    assert not paths.PAGES.exists()
    assert not pages.serves(one)
    assert pages.wait() == {}
    pages.end(said.append)
    assert programs.calls() == []
    assert len(said) == (mode == "lazy")


@pytest.mark.parametrize(
    ("mode", "mib", "shared_mib", "expected"),
    [
        ("auto", 127, 0, False),  # read faster than a server starts
        ("auto", 128, 0, True),
        ("auto", 1024, 64, True),
        ("auto", 1024, 65, False),  # would take so much more memory
        ("lazy", 1, 1, True),
        ("eager", 1024, 0, False),
    ],
)
def test_who_is_restored_on_demand(
    host: Machine, mode: str, mib: int, shared_mib: int, expected: bool
) -> None:
    one = replace(kept(0), pages=mib << 8, shared_pages=shared_mib << 8)
    pages, said = service(host, one, restore=mode)
    pages.start()
    assert paths.PAGES.exists() is expected
    assert said == []


def test_without_userfaultfd_nothing_is(host: Machine) -> None:
    (host.root / ondemand.USERFAULTFD.lstrip("/")).unlink()
    pages, said = service(host, kept(0))
    pages.start()
    assert not paths.PAGES.exists()
    assert "userfaultfd" in said[0]


def test_without_a_server_it_is_restored_eagerly_and_said(
    host: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ondemand, "READY_S", 0.05)
    one = kept(0)
    pages, said = service(host, one)
    pages.start()
    assert not pages.serves(one)
    assert pages.problems == said
    assert "/c0 is restored eagerly: no page server" in said[0]
    assert pages.wait() == {}


def test_a_server_that_systemd_does_not_start_is_not_waited_for(host: Machine, programs: Programs) -> None:
    programs.add("systemctl", "echo 'Unit is masked.' >&2; exit 1")
    one = kept(0)
    pages, said = service(host, one)
    pages.start()
    assert not pages.serves(one)
    assert "masked" in said[0]


def test_more_than_fits_is_restored_eagerly(host: Machine) -> None:
    host.file("/proc/meminfo", f"MemAvailable: {PAGES * 4 * 3 // 2} kB")
    first, second = kept(0), kept(1)
    pages, said = service(host, first, second)
    pages.start()
    with Manager(paths.PAGES) as manager:
        assert pages.serves(first)
        assert not pages.serves(second)
        pages.leave(first)
        assert manager.ended.wait(20)
    assert len(said) == 1
    assert "/c1 is restored eagerly" in said[0]


def test_a_restore_that_failed_does_not_leave_the_server_waiting(host: Machine, programs: Programs) -> None:
    one = kept(0)
    pages, _ = service(host, one)
    pages.start()
    with Manager(paths.PAGES) as manager:
        assert pages.serves(one)
        pages.leave(one)
        pages.leave(one)
        assert pages.wait() == {}
        assert manager.ended.wait(20)
        assert manager.status == 0


def test_a_server_that_comes_too_late_is_sent_away(
    host: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ondemand, "READY_S", 0.01)
    one = kept(0)
    pages, said = service(host, one)
    pages.start()
    assert not pages.serves(one)
    monkeypatch.setattr(ondemand, "POLL_S", 0.01)
    with Manager(paths.PAGES) as manager:
        pid = manager.process.pid
        programs.add("systemctl", f"kill -0 {pid} 2>/dev/null && echo active || echo inactive")
        pages.end(said.append)
        assert manager.ended.wait(5)


def test_a_server_that_does_not_end_keeps_its_frames_until_it_does(
    host: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.add("systemctl", "echo active")
    monkeypatch.setattr(ondemand, "END_S", -1.0)
    pages, _ = service(host, kept(0))
    pages.start()
    told: list[str] = []
    polls: list[float] = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 3:
            programs.add("systemctl", "echo inactive")
        assert paths.PAGES.exists()

    monkeypatch.setattr("time.sleep", sleep)
    pages.end(told.append)
    assert len(told) == 1
    assert "does not end" in told[0]
    assert polls == [ondemand.LATE_POLL_S] * 3
    assert not paths.PAGES.exists()


def test_a_server_that_nobody_can_ask_for_keeps_its_frames(
    host: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, _ = service(host, kept(0))
    pages.start()
    (programs.directory / "systemctl").unlink()
    monkeypatch.setattr("time.sleep", lambda _seconds: programs.add("systemctl", "echo inactive"))
    pages.end(lambda _text: None)
    assert programs.calls("systemctl")  # it was asked once more


def test_memory_that_does_not_come_is_an_error(host: Machine) -> None:
    one = kept(0)
    pages, _ = service(host, one, restore_timeout_seconds=0.3)
    pages.start()
    with Manager(paths.PAGES) as manager:
        assert pages.serves(one)
        with socket.socket(socket.AF_UNIX) as line:  # a CRIU that says nothing
            line.connect(str(work_directory(one) / ondemand.SOCKET))
            (memory,) = pages.wait().values()
        assert manager.ended.wait(20)
    assert memory.complete_ns is None
    assert "0.3" not in str(memory.error)
    assert "memory have come" in str(memory.error)


def test_what_the_server_failed_with_is_told(host: Machine) -> None:
    one = kept(0)
    progress = {"name": "/c0", "total_bytes": 8, "done_bytes": 8, "finished_at": 7, "error": "2 pages lost"}
    pages, _ = service(host, one)
    pages.start()
    paths.PAGES.with_name(ondemand.PROGRESS).write_text(json.dumps({"containers": [progress]}))
    assert pages.wait() == {"/c0": Memory(7, "2 pages lost")}
    assert pages.error(one) == "2 pages lost"


def test_a_server_that_says_nothing_is_an_error(host: Machine) -> None:
    pages, _ = service(host, kept(0), restore_timeout_seconds=0.05)
    pages.start()
    (memory,) = pages.wait().values()
    assert "not said anything" in str(memory.error)


def test_another_process_waits_for_what_the_server_still_brings(host: Machine, programs: Programs) -> None:
    """A restore process has died: the first container is back, nobody has begun with the second one."""
    first, second = kept(0), kept(1)
    service(host, first, second)[0].start()
    with Manager(paths.PAGES) as manager:
        before, _ = service(host, first, second)
        assert before.serves(first)
        task = start_task(work_directory(first), PID, "scattered", maps=MAPS, runs=RUNS)
        pages, said = service(host, first, second)
        pages.resume({first.directory})
        assert not pages.serves(second)
        assert set(pages.wait()) == {"/c0"}
        assert result(task) == "right"
        assert manager.ended.wait(20)  # nobody will come for the second one
    pages.end(said.append)
    assert not paths.PAGES.exists()
    assert said == pages.problems == []


def test_without_a_server_another_process_waits_for_nobody(host: Machine, programs: Programs) -> None:
    one = kept(0)
    pages, said = service(host, one)
    pages.resume({one.directory})
    assert not pages.serves(one)
    assert pages.wait() == {}
    pages.end(said.append)
    assert (programs.calls(), said) == ([], [])
