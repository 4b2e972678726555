# SPDX-License-Identifier: MIT
"""Tests of ``containers.probe``: what is dumped is let go, whatever CRIU says, and nothing is left."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.checks import findings, only
from builders.criu import FakeCriu
from builders.host import Machine

from upgrade import linux
from upgrade.check.containers.probe import probe
from upgrade.check.model import Result, Status
from upgrade.check.situation import Situation
from upgrade.config import Config
from upgrade.dump.parent import FEW_BYTES
from upgrade.request import Request

HELD = (["notify", "pre-dump", 0], ["notify", "post-dump", 500], ["answer", {"success": False}])
CONTAINER = "/workload/redis"


def situation(machine: Machine, *cgroups: str) -> Situation:
    return Situation(machine.host, Request(cgroups=cgroups or (CONTAINER,)), Config(dump_timeout_seconds=5.0))


@pytest.fixture
def container(machine: Machine, criu: FakeCriu, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    criu.on("FEATURE_CHECK", ["answer", {"mem_track": True}])
    criu.on("DUMP", *HELD)
    add(machine, CONTAINER, 500)
    return machine


def add(machine: Machine, name: str, pid: int) -> None:
    machine.cgroup(name, [pid])
    machine.process(pid, status=f"NSpid:\t{pid}\nRssAnon:\t{FEW_BYTES >> 10} kB\nVmSwap:\t0 kB")
    machine.file(f"/proc/{pid}/clear_refs", "")


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine) -> Iterator[None]:
    """See that no descriptor and no process of ours is left, and that we froze nothing ourselves."""

    def state() -> tuple[int, str]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return len(os.listdir("/proc/self/fd")), children

    before = state()
    yield
    assert state() == before
    assert [path for path, _ in machine.writes if path.endswith("cgroup.freeze")] == []


def test_a_container_is_dumped_without_its_pages_and_let_go(container: Machine, criu: FakeCriu) -> None:
    found = only(probe, situation(container), Status.PASS)
    assert found.subject == CONTAINER
    assert criu.answers() == {"pre-dump": True, "post-dump": False}
    options = criu.options("DUMP")
    assert (options.pid, options.freeze_cgroup) == (500, f"/sys/fs/cgroup{CONTAINER}")
    assert options.track_mem  # as an upgrade does that leaves pages in place
    assert not options.leave_stopped


def test_the_freeze_is_told_in_words_and_as_a_figure(container: Machine, criu: FakeCriu) -> None:
    criu.on("DUMP", HELD[0], ["sleep", 0.3], *HELD[1:])
    found = only(probe, situation(container), Status.PASS)
    figures = dict(found.figures)
    assert figures["freeze_ns"] >= 300_000_000
    assert f"{figures['freeze_ns'] / 1e6:.0f} ms" in found.seen
    from upgrade.check import catalog

    (check,) = (each for each in catalog.checks() if each.id == "containers.probe")
    assert Result(check, found).to_json()["figures"] == figures


def test_what_criu_refuses_is_told_and_the_next_one_is_dumped(container: Machine, criu: FakeCriu) -> None:
    criu.on("DUMP", HELD[0], ["answer", {"success": False, "message": "Can't dump that"}])
    add(container, "/workload/other", 600)
    first, second = findings(probe, situation(container, CONTAINER, "/workload/other"))
    assert [first.status, second.status] == [Status.FAIL, Status.FAIL]
    assert (first.subject, second.subject) == (CONTAINER, "/workload/other")
    assert "Can't dump that" in first.seen
    assert first.reason
    assert first.remedy


def test_what_would_be_refused_anyway_is_not_frozen(container: Machine, criu: FakeCriu) -> None:
    where = situation(container)
    where.refused.add(CONTAINER)
    found = only(probe, where, Status.SKIP)
    assert "another check failed" in found.reason
    assert not any(note.get("request") == "DUMP" for note in criu.seen())


def test_nobody_freezes_himself(container: Machine, criu: FakeCriu) -> None:
    add(container, "/workload/shell", os.getpid())
    found = only(probe, situation(container, "/workload/shell"), Status.SKIP)
    assert "this very command" in found.reason
    assert not any(note.get("request") == "DUMP" for note in criu.seen())


def test_a_criu_that_dies_is_no_pass(container: Machine, criu: FakeCriu) -> None:
    criu.on("DUMP", HELD[0], ["kill"])
    assert "CRIU cannot dump it" in only(probe, situation(container), Status.FAIL).seen


def test_an_interrupt_lets_the_container_go(
    container: Machine, criu: FakeCriu, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upgrade.dump.dumper import Dumps

    wait = Dumps.wait_until_held

    def interrupted(dumps: Dumps) -> None:
        wait(dumps)
        raise KeyboardInterrupt

    monkeypatch.setattr(Dumps, "wait_until_held", interrupted)
    with pytest.raises(KeyboardInterrupt):
        findings(probe, situation(container))
    assert criu.answers()["post-dump"] is False


def test_the_images_lie_on_a_tmpfs_of_their_own() -> None:
    found = linux.detached_tmpfs(1 << 20)
    try:
        state = os.statvfs(found)
        assert state.f_blocks * state.f_frsize == 1 << 20
        assert os.fstat(found).st_mode & 0o777 == 0o700
        root = Path(f"/proc/self/fd/{found}")
        (root / "file").write_bytes(bytes(4096))
        assert [each.name for each in root.iterdir()] == ["file"]
    finally:
        os.close(found)
