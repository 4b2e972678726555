# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.engines.cgroup`` and of how engines are found."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders.criu import FakeCriu
from builders.host import NAMESPACES, Machine
from builders.programs import Programs
from builders.session import container

from upgrade import engines
from upgrade.criu import CriuError, messages
from upgrade.engines.base import Images
from upgrade.engines.cgroup import CgroupEngine
from upgrade.errors import ExitStatus, Refusal, UpgradeError


@pytest.fixture
def workload(machine: Machine) -> Machine:
    machine.cgroup("/workload/redis", [500, 502])
    machine.cgroup("/workload/redis/below", [501])
    machine.process(500, name="redis (main)")
    machine.process(501, parent=500, session=500)
    machine.process(502, parent=501, session=500)
    return machine


def refused(machine: Machine, name: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        CgroupEngine(machine.host).find(name)
    assert caught.value.status == ExitStatus.REFUSED
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "name", ["/workload/redis", "workload/redis", "/workload/redis/", "/sys/fs/cgroup/workload/redis"]
)
def test_a_tree_is_found_by_every_name_of_its_cgroup(workload: Machine, name: str) -> None:
    found = CgroupEngine(workload.host).find(name)
    assert (found.name, found.engine, found.cgroup, found.root_pid) == (
        "/workload/redis",
        "cgroup",
        "/workload/redis",
        500,
    )
    assert found.host_pids
    assert found.host_network
    assert found.data == {}


def test_its_cold_start_comes_from_the_configuration(workload: Machine) -> None:
    workload.file(
        "/etc/seamless-upgrade/config.toml", '[cold_start]\n"/workload/redis" = ["redis-server", "-d"]'
    )
    assert CgroupEngine(workload.host).find("workload/redis").data == {"cold_start": ["redis-server", "-d"]}


@pytest.mark.parametrize(
    "name", ["/workload/none", "/", "", "/sys/fs/cgroup", "/workload/redis/cgroup.procs"]
)
def test_what_is_no_cgroup_is_refused(workload: Machine, name: str) -> None:
    assert refused(workload, name).subject == name


def test_an_empty_cgroup_is_refused(workload: Machine) -> None:
    workload.cgroup("/workload/empty")
    assert "no task" in refused(workload, "/workload/empty").message


def test_two_trees_are_refused_by_name(workload: Machine) -> None:
    workload.cgroup("/workload/two", [600, 601, 602])
    workload.process(600, name="one")
    workload.process(601, parent=600, session=600)
    workload.process(602, name="two")
    message = refused(workload, "/workload/two").message
    assert "2 task trees" in message
    assert "600 (one), 602 (two)" in message


def test_a_root_that_leads_no_session_is_refused(workload: Machine) -> None:
    workload.cgroup("/workload/x", [700])
    workload.process(700, session=42)
    error = refused(workload, "/workload/x")
    assert "belongs to session 42" in error.message
    assert "setsid" in str(error.hint)


@pytest.mark.parametrize("kind", NAMESPACES)
def test_a_namespace_of_its_own_is_refused(workload: Machine, kind: str) -> None:
    workload.cgroup("/workload/x", [700])
    workload.process(700, namespaces={kind: 4026532999})
    assert f"a {kind} namespace" in refused(workload, "/workload/x").message


def test_a_first_thread_that_has_ended_hides_no_other_container(workload: Machine) -> None:
    """Its links are there, but lead nowhere; ``containers.tasks`` says what is wrong with it."""
    workload.cgroup("/workload/x", [700])
    workload.process(700)
    for link in (workload.root / "proc/700/ns").iterdir():
        link.unlink()
    assert CgroupEngine(workload.host).find("/workload/x").root_pid == 700


def test_a_service_of_systemd_is_refused_and_a_scope_is_not(workload: Machine) -> None:
    for name, pid in (("/system.slice/nginx.service", 800), ("/system.slice/run-1.scope", 801)):
        workload.cgroup(name, [pid])
        workload.process(pid)
    assert "nginx.service" in refused(workload, "/system.slice/nginx.service").message
    assert CgroupEngine(workload.host).find("/system.slice/run-1.scope").root_pid == 801


def test_none_is_preserved_unasked(workload: Machine) -> None:
    assert CgroupEngine(workload.host).available() == []


def images(tmp_path: Path, timeout_s: float | None = None) -> Images:
    for name in ("images", "work"):
        (tmp_path / name).mkdir()
    return Images(tmp_path / "images", tmp_path / "work", timeout_s)


def test_a_restore_unlocks_before_the_connections_go_on(
    machine: Machine, criu: FakeCriu, tmp_path: Path
) -> None:
    criu.on("RESTORE", ["notify", "pre-restore", 0], ["notify", "post-restore", 9], ["answer", {"pid": 4711}])
    answered: list[dict[str, bool]] = []

    def unlock() -> None:
        answered.append(criu.answers())

    before = len(os.listdir("/proc/self/fd"))
    found = CgroupEngine(machine.host).restore(container(), images(tmp_path), unlock)
    assert found == 4711
    assert answered == [{"pre-restore": True}]  # CRIU still waits for the answer to post-restore
    assert criu.answers() == {"pre-restore": True, "post-restore": True}
    assert len(os.listdir("/proc/self/fd")) == before
    options = criu.options("RESTORE")
    assert options.tcp_established
    assert options.notify_scripts
    assert options.manage_cgroups_mode == messages().SOFT
    assert not options.lazy_pages


def test_on_demand_is_what_criu_is_told(machine: Machine, criu: FakeCriu, tmp_path: Path) -> None:
    criu.on("RESTORE", ["answer", {"pid": 4711}])
    CgroupEngine(machine.host).restore(container(), replace(images(tmp_path), lazy=True), lambda: None)
    assert criu.options("RESTORE").lazy_pages


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([["answer", {"success": False, "message": "no"}]], "no"),
        (
            [["write", "restore.log", "(00.1) Error (a.c:1): in the log\n"], ["kill"]],
            "Error (a.c:1): in the log",
        ),
    ],
)
def test_a_failed_restore_tells_the_log(
    machine: Machine, criu: FakeCriu, tmp_path: Path, steps: list[list[Any]], message: str
) -> None:
    criu.on("RESTORE", *steps)
    with pytest.raises(CriuError) as caught:
        CgroupEngine(machine.host).restore(container(), images(tmp_path), lambda: None)
    assert caught.value.message == message


def test_a_cold_start_runs_in_its_cgroup_in_a_session_of_its_own(
    machine: Machine, programs: Programs, tmp_path: Path
) -> None:
    for name in ("sh", "setsid", "sleep"):
        programs.real(name)
    programs.add("service", f"echo $$ > {tmp_path}/pid; cat /proc/$$/stat > {tmp_path}/stat; exec sleep 3")
    machine.cgroup("/workload/redis")
    started = time.monotonic()
    assert CgroupEngine(machine.host).cold_start(container(cold_start=["service", "a b", "$HOME"]))
    assert time.monotonic() - started < 2  # it does not wait for the end of what it started
    while not (tmp_path / "stat").exists() and time.monotonic() - started < 5:
        time.sleep(0.01)
    time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    stat = (tmp_path / "stat").read_text().rpartition(")")[2].split()
    os.kill(pid, 9)
    assert int(stat[3]) == pid  # leads a session
    assert machine.host.read("/sys/fs/cgroup/workload/redis/cgroup.procs").strip().isdigit()
    assert programs.calls("service") == [["service", "a b", "$HOME"]]


def test_no_command_is_no_cold_start(machine: Machine) -> None:
    assert not CgroupEngine(machine.host).cold_start(container())


def test_what_a_failed_restore_left_is_ended(machine: Machine) -> None:
    machine.cgroup("/workload/redis")
    engine = CgroupEngine(machine.host)
    engine.clean_up(container())
    engine.clean_up(container("/gone"))
    assert machine.writes == [("/sys/fs/cgroup/workload/redis/cgroup.kill", "1")]


def test_engines_are_found_by_name(machine: Machine) -> None:
    names = [engine.name for engine in engines.engines(machine.host)]
    assert len(set(names)) == len(names)
    for name in names:
        assert engines.engine(machine.host, name).name == name
    with pytest.raises(UpgradeError, match="docker: is not an engine"):
        engines.engine(machine.host, "docker")
