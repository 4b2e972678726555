# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.restorer``: every container runs again, one way or another."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders.criu import FakeCriu
from builders.host import Machine
from builders.programs import Programs
from builders.session import container, dumped, session

from memfs import checksums
from upgrade import paths
from upgrade.clock import Clock
from upgrade.engines.base import Container
from upgrade.engines.cgroup import CgroupEngine
from upgrade.restore import nudge, timens
from upgrade.restore.ledger import Back, Begun, Ledger
from upgrade.restore.restorer import MOST_STARTS, Restored, Restorer
from upgrade.session import Dumped

COMES_BACK = (["notify", "post-restore", 4711], ["answer", {"pid": 4711}])


def taken() -> Ledger:
    """Return the ledger of a process that begins."""
    ledger = Ledger.take(paths.LEDGER, 100)
    assert ledger is not None
    return ledger


class Scene:
    """Containers with images, and everything that bringing them back needs."""

    def __init__(self, machine: Machine, programs: Programs, criu: FakeCriu, tmp_path: Path) -> None:
        self.machine = machine
        self.programs = programs
        self.criu = criu
        self.started = tmp_path / "started"
        self.waited: list[str] = []
        self.nudged: list[Any] = []
        self.dumps: list[Dumped] = []
        self.ledger = taken()
        criu.on("RESTORE", *COMES_BACK)
        programs.add("nft")
        programs.real("sh")
        programs.real("setsid")
        programs.real("touch")

    def add(self, name: str, **changes: Any) -> None:
        number = len(self.dumps)
        directory = paths.STORE / f"container-{number}"
        directory.mkdir()
        (directory / "inventory.img").write_bytes(name.encode())
        data: dict[str, Any] = {"cold_start": ["touch", f"{self.started}{name.replace('/', '-')}"]}
        one = changes.pop("container", container(name, **data))
        self.machine.cgroup(name)
        self.dumps.append(dumped(one, number, checksums=checksums.of_tree(directory, 1), **changes))

    def bring_back(
        self, pages: Any = None, early_done: Callable[[], object] = bool, **members: Any
    ) -> list[Restored]:
        counter = itertools.count(1000)
        restorer = Restorer(
            self.machine.host,
            Clock(lambda: next(counter)),
            session(self.dumps, **members),
            self.ledger,
            lambda: self.waited.append("network"),
            pages=pages,
        )
        return restorer.restore_all(early_done)

    def was_started(self, name: str) -> bool:
        import time

        file = Path(f"{self.started}{name.replace('/', '-')}")
        deadline = time.monotonic() + 3
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)  # setsid --fork does not wait for it
        return file.exists()

    def flushed(self) -> list[str]:
        """Return the chains that were emptied, in order."""
        return [line.split()[-1] for text in self.programs.inputs("nft") for line in text.splitlines()]


def unlocked(number: int) -> list[str]:
    """Return the chains that are emptied for a container."""
    return [f"{hook}-{number}" for hook in ("input", "forward", "output", "postrouting")]


@pytest.fixture
def scene(
    machine: Machine,
    programs: Programs,
    criu: FakeCriu,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    found = Scene(machine, programs, criu, tmp_path)
    monkeypatch.setattr(nudge, "peers", lambda peers: found.nudged.extend(peers))
    return found


def test_all_come_back_in_their_order(scene: Scene) -> None:
    for name in ("/a", "/b", "/c"):
        scene.add(name)
    results = scene.bring_back()
    assert [(r.dumped.container.name, r.outcome, r.reason) for r in results] == [
        ("/a", "restored", None),
        ("/b", "restored", None),
        ("/c", "restored", None),
    ]
    assert all(r.running_at >= 1000 for r in results)
    assert sorted(scene.flushed()) == sorted(unlocked(0) + unlocked(1) + unlocked(2))
    assert len(scene.nudged) == 3
    assert scene.waited == ["network"] * 3
    requests = [note for note in scene.criu.seen() if note.get("request") == "RESTORE"]
    assert len(requests) == 3


def test_each_is_unlocked_when_its_sockets_exist_and_nudged_afterwards(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr("upgrade.netlock.unlock", lambda number, _: order.append(f"unlock {number}"))
    monkeypatch.setattr(nudge, "peers", lambda peers: order.append(f"nudge {len(peers)}"))
    scene.add("/a")
    scene.bring_back()
    assert order == ["unlock 0", "nudge 1"]


@pytest.mark.parametrize(("clocks", "counted"), [("pause", []), ("run", ["container-0"])])
def test_the_clocks_are_told_of_the_downtime_if_that_was_asked_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, clocks: str, counted: list[str]
) -> None:
    """The images are compared with their checksums as CRIU wrote them, also by a second restore process."""
    seen: list[str] = []

    def count(directory: Path, most_ns: int) -> int:
        assert most_ns > 0
        seen.append(directory.name)
        image = directory / "timens-0.img"
        image.rename(directory / f"timens-0.img{timens.KEPT}")
        image.write_bytes(b"later")
        return most_ns

    monkeypatch.setattr(timens, "count", count)
    directory = paths.STORE / "container-0"
    scene.add("/a")
    (directory / "timens-0.img").write_bytes(b"dumped")
    scene.dumps[0] = replace(scene.dumps[0], checksums=checksums.of_tree(directory, 1), frozen_at=0)
    (result,) = scene.bring_back(clocks=clocks)
    assert (result.outcome, result.reason, seen) == ("restored", None, counted)
    scene.ledger.back.clear()
    scene.ledger.may_run.clear()
    (again,) = scene.bring_back(clocks=clocks)
    assert (again.outcome, again.reason, seen) == ("restored", None, 2 * counted)


def test_a_clock_that_cannot_be_told_is_no_reason_to_start_from_cold(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timens, "count", count)
    scene.add("/a")
    (result,) = scene.bring_back(clocks="run")
    assert result.outcome == "restored"
    assert "do not count the downtime: [Errno 28]" in str(result.reason)


@pytest.mark.parametrize("steps", [[["answer", {"pid": 1}]], [["notify", "network-unlock", 0], *COMES_BACK]])
def test_it_is_unlocked_once_whatever_criu_says(scene: Scene, steps: list[list[Any]]) -> None:
    scene.criu.on("RESTORE", *steps)
    scene.add("/a")
    (result,) = scene.bring_back()
    assert result.outcome == "restored"
    assert scene.flushed() == unlocked(0)


def test_the_boot_goes_on_before_those_that_need_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late one waits for what comes only when the others are back."""
    for name in ("/late", "/early"):
        scene.add(name)
    booted = threading.Event()
    back_by_then: list[int] = []
    restore = CgroupEngine.restore

    def slow(self: CgroupEngine, one: Container, *more: Any) -> int:
        if one.name == "/late":
            assert booted.wait(20)
        return restore(self, one, *more)

    def early_done() -> None:
        back_by_then.extend(scene.ledger.back)
        booted.set()

    monkeypatch.setattr(CgroupEngine, "is_late", lambda _, one: one.name == "/late")
    monkeypatch.setattr(CgroupEngine, "restore", slow)
    results = scene.bring_back(early_done=early_done)
    assert back_by_then == [1]
    assert [(r.dumped.container.name, r.outcome) for r in results] == [
        ("/late", "restored"),
        ("/early", "restored"),
    ]


class Pages:
    """A page server that serves some containers."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.left: list[str] = []
        self.told: list[str] = []

    def answers(self, dumped: Dumped) -> None:
        self.told.append(dumped.container.name)

    def serves(self, dumped: Dumped) -> bool:
        return dumped.container.name in self.names

    def error(self, _dumped: Dumped) -> str:
        return "pages-1.img is too short"

    def leave(self, dumped: Dumped) -> None:
        self.left.append(dumped.container.name)


def test_memory_comes_on_demand_where_the_server_serves(scene: Scene) -> None:
    scene.add("/a")
    pages = Pages("/a")
    (result,) = scene.bring_back(pages)
    assert (result.outcome, result.lazy) == ("restored", True)
    assert scene.criu.options("RESTORE").lazy_pages
    assert (pages.left, pages.told) == ([], ["/a"])


@pytest.mark.parametrize("served", [True, False])
def test_a_restore_that_failed_lets_the_server_go(scene: Scene, served: bool) -> None:
    scene.criu.on("RESTORE", ["answer", {"success": False, "message": "no"}])
    scene.add("/a")
    pages = Pages(*(["/a"] if served else []))
    (result,) = scene.bring_back(pages)
    assert (result.outcome, result.lazy) == ("cold-started", False)
    assert pages.left == ["/a"]
    assert ("the page server: pages-1.img is too short" in str(result.reason)) == served


def test_without_a_lock_nothing_is_unlocked(scene: Scene) -> None:
    scene.add("/a")
    assert scene.bring_back(lock="")[0].outcome == "restored"
    assert scene.programs.calls("nft") == []


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([["answer", {"success": False, "message": "Can't fork for 188: File exists"}]], "File exists"),
        ([["kill"]], "ended without an answer"),
        ([["notify", "post-restore", 1], ["answer", {"success": False, "message": "late"}]], "late"),
        (
            [["write", "restore.log", "(00.1) Error (x.c:1): told\n"], ["answer", {"success": False}]],
            "x.c:1): told",
        ),
    ],
)
def test_what_cannot_be_restored_is_started_from_cold(
    scene: Scene, steps: list[list[Any]], reason: str
) -> None:
    scene.criu.on("RESTORE", *steps)
    scene.add("/a")
    scene.machine.file("/sys/fs/cgroup/a/cgroup.freeze", "1")
    (result,) = scene.bring_back()
    assert result.outcome == "cold-started"
    assert reason in str(result.reason)
    assert scene.was_started("/a")
    assert scene.machine.written("/sys/fs/cgroup/a/cgroup.kill") == ["1"]
    assert scene.machine.written("/sys/fs/cgroup/a/cgroup.freeze") == ["0"]
    assert scene.flushed() == unlocked(0)
    assert scene.nudged == []


def test_damaged_images_are_never_given_to_criu(scene: Scene) -> None:
    scene.add("/a")
    scene.add("/b")
    (paths.STORE / "container-0" / "inventory.img").write_bytes(b"/x")
    damaged, whole = scene.bring_back()
    assert (damaged.outcome, whole.outcome) == ("cold-started", "restored")
    assert "its images are damaged: inventory.img: checksum" in str(damaged.reason)
    assert len([note for note in scene.criu.seen() if note.get("request") == "RESTORE"]) == 1
    assert scene.was_started("/a")


def test_missing_images_are_damaged_images(scene: Scene) -> None:
    scene.add("/a")
    (paths.STORE / "container-0" / "inventory.img").unlink()
    assert "inventory.img: No such file" in str(scene.bring_back()[0].reason)


def test_images_of_another_criu_are_not_restored(scene: Scene) -> None:
    scene.add("/a")
    (result,) = scene.bring_back(criu_version="4.2")
    assert result.outcome == "cold-started"
    assert "of CRIU 4.2, but CRIU 4.1.1 is installed" in str(result.reason)
    assert not any(note.get("request") == "RESTORE" for note in scene.criu.seen())


@pytest.mark.parametrize("how", ["missing", "dies"])
def test_without_a_working_criu_everything_is_started_from_cold(scene: Scene, how: str) -> None:
    scene.add("/a")
    scene.add("/b")
    if how == "missing":
        (scene.criu.directory / "criu").unlink()
    else:
        scene.criu.dies_at_once()
    results = scene.bring_back()
    assert [r.outcome for r in results] == ["cold-started"] * 2
    assert all("criu" in str(r.reason) for r in results)
    assert scene.was_started("/a")
    assert scene.was_started("/b")


def test_what_nobody_can_start_is_lost_and_the_others_are_not(scene: Scene) -> None:
    scene.criu.on("RESTORE", ["answer", {"success": False, "message": "no"}])
    scene.add("/a", container=container("/a"))
    scene.add("/b", container=Container("/b", "docker", "/b", 7, host_pids=False, host_network=False))
    scene.add("/c", container=container("/c", cold_start=["nothing-of-that-name"]))
    scene.add("/d")
    first, second, third, fourth = scene.bring_back()
    assert (first.outcome, second.outcome, fourth.outcome) == ("lost", "lost", "cold-started")
    assert "no cold start command is configured" in str(first.reason)
    assert "not an engine of this version" in str(second.reason)
    assert third.outcome in ("lost", "cold-started")  # setsid has gone on before it fails
    assert scene.was_started("/d")


def test_a_lock_that_does_not_open_loses_no_container(scene: Scene) -> None:
    scene.programs.add("nft", "echo 'no such chain' >&2; exit 1")
    scene.add("/a", container=container("/a"))
    scene.criu.on("RESTORE", ["answer", {"pid": 4711}])
    scene.add("/b")
    results = scene.bring_back()
    assert [r.outcome for r in results] == ["restored", "restored"]
    assert all("no such chain" in str(r.reason) for r in results)


def test_only_containers_in_the_host_s_network_wait_for_it(scene: Scene) -> None:
    own = Container("/a", "cgroup", "/a", 500, host_pids=False, host_network=False)
    scene.add("/a", container=own)
    assert scene.bring_back()[0].outcome == "restored"
    assert scene.waited == []
    assert scene.programs.calls("nft") == []


def test_a_restore_that_hangs_is_given_up(scene: Scene) -> None:
    scene.criu.on("RESTORE", ["sleep", 0.8], *COMES_BACK)
    scene.add("/a")
    (result,) = scene.bring_back(restore_timeout_seconds=0.2)
    assert result.outcome == "cold-started"
    assert "no answer within" in str(result.reason)


def again(scene: Scene) -> None:
    """Let the process die and another one begin."""
    scene.ledger.close()
    scene.ledger = taken()


def test_each_step_is_in_the_ledger_before_it_is_taken(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[tuple[bool, bool]] = []

    def look(_number: int, _rules: str) -> None:
        known.append((0 in scene.ledger.may_run, 0 in scene.ledger.back))

    monkeypatch.setattr("upgrade.netlock.unlock", look)
    scene.add("/a")
    (result,) = scene.bring_back()
    assert known == [(True, False)]  # unlocked once CRIU says that it is restored, before its tasks run
    again(scene)
    assert scene.ledger.unsettled() == {}
    assert scene.ledger.back[0] == Back("restored", None, result.running_at)


def test_a_container_that_criu_has_in_its_hands_cannot_run_yet(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.criu.on("RESTORE", ["answer", {"success": False, "message": "no"}])
    scene.add("/a")
    seen: list[bool] = []

    class Adapter(CgroupEngine):
        def restore(self, *words: Any) -> int:
            seen.append(0 in scene.ledger.begun and 0 not in scene.ledger.may_run)
            return super().restore(*words)

    monkeypatch.setattr("upgrade.restore.restorer.engine", lambda host, _name: Adapter(host))
    (result,) = scene.bring_back()
    assert seen == [True]
    assert result.outcome == "cold-started"
    assert 0 in scene.ledger.may_run  # its cold start must not be restored over


def test_what_is_back_is_not_restored_a_second_time(scene: Scene) -> None:
    scene.add("/a")
    scene.add("/b")
    scene.ledger.begin(0, Begun(True, 1.0, ()))
    scene.ledger.end(0, Back("restored", None, 555, lazy=True))
    again(scene)
    first, second = scene.bring_back()
    assert (first.outcome, first.running_at, first.lazy) == ("restored", 555, True)
    assert (second.outcome, second.reason) == ("restored", None)
    assert len([note for note in scene.criu.seen() if note.get("request") == "RESTORE"]) == 1
    assert scene.flushed() == unlocked(1)


def test_what_two_processes_died_of_is_not_tried_by_a_third(scene: Scene) -> None:
    scene.add("/a")
    scene.ledger.begin(0, Begun(False, 1.0, ()))
    again(scene)
    again(scene)
    (result,) = scene.bring_back()
    assert result.outcome == "cold-started"
    assert "died 2 times" in str(result.reason)
    assert not any(note.get("request") == "RESTORE" for note in scene.criu.seen())


def test_what_may_have_run_is_never_restored_again(scene: Scene) -> None:
    """Even if nobody has settled what became of it."""
    scene.add("/a")
    scene.ledger.begin(0, Begun(False, 1.0, ()))
    scene.ledger.let_run(0)
    again(scene)
    (result,) = scene.bring_back()
    assert (result.outcome, scene.was_started("/a")) == ("cold-started", True)
    assert not any(note.get("request") == "RESTORE" for note in scene.criu.seen())


def test_the_last_start_is_the_last_that_systemd_makes() -> None:
    unit = Path(paths.__file__).with_name("units") / paths.RESTORE_UNIT
    settings = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
    assert settings["StartLimitBurst"] == str(MOST_STARTS)
    assert settings["Restart"] == "on-failure"
