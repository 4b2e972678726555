# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.aftermath``: what a restore process that died has left, with real processes."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.programs import Programs
from builders.session import container, dumped

from upgrade import paths
from upgrade.clock import Clock
from upgrade.engines.base import Container
from upgrade.restore import aftermath, nudge
from upgrade.restore.ledger import Back, Begun, Ledger
from upgrade.restore.restorer import work_directory
from upgrade.session import Dumped


class Scene:
    """A ledger that a process has left, and its containers."""

    def __init__(self, machine: Machine, programs: Programs) -> None:
        self.machine = machine
        self.dumps: list[Dumped] = []
        self.ledger = self.take()
        for name in ("sh", "setsid", "true"):
            programs.real(name)
        programs.add("nft")

    def take(self) -> Ledger:
        found = Ledger.take(paths.LEDGER, 100)
        assert found is not None
        return found

    def begun(self, name: str, pids: tuple[int, ...] = (), **members: Any) -> Dumped:
        """Add a container of whose restore the beginning is known."""
        number = len(self.dumps)
        self.machine.cgroup(name, pids)
        self.dumps.append(dumped(container(name, cold_start=["true"]), number))
        self.ledger.begin(number, Begun(**{"lazy": False, "limit_s": 0.3, "helpers": (), **members}))
        return self.dumps[-1]

    def dies(self) -> None:
        """Let the process die and another one begin."""
        self.ledger.close()
        self.ledger = self.take()

    def settle(self) -> dict[int, Back]:
        counter = itertools.count(1000)
        aftermath.settle(self.machine.host, Clock(lambda: next(counter)), self.ledger, self.dumps)
        return self.ledger.back

    def killed(self, name: str) -> bool:
        return self.machine.written(f"/sys/fs/cgroup{name}/cgroup.kill") == ["1"]


@pytest.fixture
def scene(machine: Machine, programs: Programs, here: Path) -> Scene:
    return Scene(machine, programs)


def finished(one: Dumped) -> None:
    """Let CRIU write what it writes once the tasks run."""
    (work_directory(one) / "stats-restore").write_bytes(b"statistics")


def test_what_cannot_have_run_is_cleared_away_and_restored_again(scene: Scene) -> None:
    scene.begun("/a")
    scene.dies()
    assert scene.settle() == {}
    assert scene.killed("/a")
    assert scene.ledger.interrupted == {0}


def test_its_process_ids_are_free_before_it_is_restored_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.begun("/a", (4711,))
    scene.machine.process(4711)
    looked: list[float] = []

    def sleep(seconds: float) -> None:
        looked.append(seconds)
        (scene.machine.root / "proc/4711").rename(scene.machine.root / "gone")

    monkeypatch.setattr("time.sleep", sleep)
    scene.dies()
    scene.settle()
    assert len(looked) == 1


def test_what_came_back_without_us_is_left_alone(scene: Scene) -> None:
    one = scene.begun("/a", (4711,), lazy=True)
    scene.ledger.let_run(0)
    finished(one)
    scene.dies()
    back = scene.settle()[0]
    assert (back.outcome, back.lazy, back.running_at) == ("restored", True, 1000)
    assert "found running" in str(back.reason)
    assert not scene.killed("/a")


@pytest.mark.parametrize(("pids", "statistics"), [((), True), ((4711,), False), ((), False)])
def test_what_may_have_run_is_never_restored_a_second_time(
    scene: Scene, pids: tuple[int, ...], statistics: bool
) -> None:
    one = scene.begun("/a", pids)
    scene.ledger.let_run(0)
    if statistics:
        finished(one)
    scene.dies()
    back = scene.settle()[0]
    assert back.outcome == "cold-started"
    assert "may have run already" in str(back.reason)
    assert "1" in scene.machine.written("/sys/fs/cgroup/a/cgroup.kill")


def test_what_is_known_stays_as_it_is(scene: Scene) -> None:
    scene.begun("/a", (4711,))
    scene.ledger.let_run(0)
    scene.ledger.end(0, Back("restored", None, 7))
    scene.dies()
    assert scene.settle() == {0: Back("restored", None, 7)}
    assert not scene.killed("/a")
    assert scene.ledger.interrupted == set()


@pytest.fixture
def process() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start processes that are ended afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()
        assert each.stdin is not None
        each.stdin.close()


class Living(Machine):
    """A machine in whose cgroups are those processes that have not ended."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.living: dict[str, subprocess.Popen[bytes]] = {}

    def left(self, _host: Any, place: str) -> list[int]:
        one = self.living.get(place)
        return [one.pid] if one is not None and one.poll() is None else []


@pytest.fixture
def living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Living:
    found = Living(tmp_path / "living")
    monkeypatch.setattr("upgrade.cgroup.pids", found.left)
    return found


def end(scene: Scene) -> list[str]:
    said: list[str] = []
    aftermath.end_helpers(scene.machine.host, scene.ledger, said.append)
    return said


def test_helpers_of_what_cannot_have_run_are_killed_at_once(
    scene: Scene, living: Living, process: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    scene.begun("/a", limit_s=1e6)
    scene.dies()
    criu = living.living[paths.RESTORE_CGROUP] = process("input()")
    assert end(scene) == []
    assert criu.wait() == -9


def test_a_runc_may_finish_its_restore(
    scene: Scene, living: Living, process: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    scene.begun("/a", limit_s=60.0, helpers=("/beside",))
    scene.ledger.let_run(0)
    scene.dies()
    runc = living.living["/beside"] = process("import time; time.sleep(0.3)")
    assert end(scene) == []
    assert runc.wait() == 0


def test_but_not_for_ever(
    scene: Scene, living: Living, process: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    scene.begun("/a", helpers=("/beside",))
    scene.ledger.let_run(0)
    scene.dies()
    runc = living.living["/beside"] = process("input()")
    assert end(scene) == []
    assert runc.wait() == -9


def test_a_helper_that_does_not_end_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, process: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    one = process("input()")
    monkeypatch.setattr("upgrade.cgroup.pids", lambda _host, _place: [one.pid])
    monkeypatch.setattr(aftermath, "KILL_S", 0.05)
    scene.dies()
    (line,) = end(scene)
    assert str(one.pid) in line


def test_what_runs_is_let_through_the_new_lock(
    scene: Scene, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    nudged: list[Any] = []
    monkeypatch.setattr(nudge, "peers", nudged.extend)
    for name in ("/a", "/b", "/c"):
        scene.begun(name)
    scene.ledger.end(0, Back("restored", None, 7))
    scene.ledger.end(1, Back("cold-started", "damaged", 7))
    aftermath.let_through(scene.ledger, scene.dumps)
    flushed = [line.split()[-1] for text in programs.inputs("nft") for line in text.splitlines()]
    assert flushed == [f"{d}-{n}" for n in (0, 1) for d in ("input", "forward", "output", "postrouting")]
    assert len(nudged) == 1


def test_a_container_whose_plan_is_gone_is_no_error(scene: Scene) -> None:
    scene.begun("/a")
    scene.dies()
    scene.dumps.clear()
    assert scene.settle() == {}


def test_the_report_names_what_was_being_restored(scene: Scene) -> None:
    scene.begun("/a")
    scene.begun("/b")
    scene.ledger.end(1, Back("restored", None, 7))
    scene.dies()
    text = aftermath.describe(scene.ledger, scene.dumps)
    assert text == "the restore process died while it restored /a, and was started again"


def test_runc_is_found_in_the_cgroup_beside_that_of_its_container(
    machine: Machine, programs: Programs
) -> None:
    from upgrade.engines import engine

    def runc(own: str) -> Container:
        data = {"own_cgroups_path": own}
        return Container("web", "runc", "/pods/web", 1, host_pids=False, host_network=False, data=data)

    adapter = engine(machine.host, "runc")
    assert adapter.helpers(runc("")) == ("/pods/seamless-upgrade",)
    assert adapter.helpers(runc("/pods/web")) == ()
    assert not adapter.runs(runc("/pods/web"))  # runc does not know it
