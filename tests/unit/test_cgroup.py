# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.cgroup`` on fake cgroups that freeze when they are told to."""

import threading

import pytest
from builders.host import Machine

from upgrade import cgroup
from upgrade.errors import UpgradeError


def test_paths() -> None:
    assert cgroup.path("/a/b") == "/sys/fs/cgroup/a/b"
    assert cgroup.path("a/b/", "cgroup.procs") == "/sys/fs/cgroup/a/b/cgroup.procs"


def test_a_tree_is_parents_first_and_its_processes_are_all(machine: Machine) -> None:
    machine.cgroup("/a", [30, 4])
    machine.cgroup("/a/b", [5])
    machine.cgroup("/a/b/c", [6, 5])
    machine.cgroup("/ab", [99])
    (machine.root / "sys/fs/cgroup/a/threaded").mkdir()  # its cgroup.procs cannot be read
    assert cgroup.tree(machine.host, "/a") == ["/a", "/a/b", "/a/b/c", "/a/threaded"]
    assert cgroup.pids(machine.host, "/a") == [4, 5, 6, 30]
    assert cgroup.pids(machine.host, "/a/") == [4, 5, 6, 30]
    assert cgroup.pids(machine.host, "/gone") == []
    assert "/a/b/c" in cgroup.tree(machine.host, "/")


def test_all_are_told_before_any_is_waited_for(machine: Machine) -> None:
    for name in ("/a", "/b"):
        machine.cgroup(name, [5])
    cgroup.freeze(machine.host, iter(["/a", "/b"]), 1)
    assert machine.writes == [
        ("/sys/fs/cgroup/a/cgroup.freeze", "1"),
        ("/sys/fs/cgroup/b/cgroup.freeze", "1"),
    ]
    assert cgroup.is_frozen(machine.host, "/a")
    cgroup.thaw(machine.host, "/a")
    assert not cgroup.is_frozen(machine.host, "/a")
    assert cgroup.is_frozen(machine.host, "/b")


def test_thawing_what_is_gone_is_nothing(machine: Machine) -> None:
    cgroup.thaw(machine.host, "/gone")
    assert machine.writes == []


def test_a_slow_one_is_waited_for(machine: Machine) -> None:
    machine.cgroup("/slow", [5])
    machine.stubborn.add("/slow")
    late = threading.Timer(0.1, machine.file, ("/sys/fs/cgroup/slow/cgroup.events", "populated 1\nfrozen 1"))
    late.start()
    cgroup.freeze(machine.host, ["/slow"], 60)
    assert cgroup.is_frozen(machine.host, "/slow")
    late.join()


def test_who_does_not_stop_is_named(machine: Machine) -> None:
    machine.cgroup("/a", [5])
    machine.cgroup("/stuck", [6, 7])
    machine.cgroup("/stuck/below", [8])
    machine.process(6, name="fine")
    machine.process(7, name="nfs (client) D", state="D")
    machine.process(8, name="deep", state="D")
    machine.stubborn.add("/stuck")
    with pytest.raises(UpgradeError) as caught:
        cgroup.freeze(machine.host, ["/a", "/stuck"], 0.02)
    assert caught.value.subject == "/stuck"
    assert "7 (nfs (client) D, state D), 8 (deep, state D)" in caught.value.message
    assert "fine" not in caught.value.message


def test_nobody_to_name(machine: Machine) -> None:
    machine.cgroup("/stuck", [9])  # it ended meanwhile
    machine.stubborn.add("/stuck")
    with pytest.raises(UpgradeError, match="not stopped: unknown"):
        cgroup.freeze(machine.host, ["/stuck"], 0.01)


def test_what_has_tasks_is_not_removed(machine: Machine) -> None:
    top = machine.root / "sys/fs/cgroup/pod"
    for name in ("empty/deep", "busy"):
        (top / name).mkdir(parents=True)
    (top / "busy/cgroup.procs").write_text("7\n")  # rmdir(2) of it fails as that of a real one
    cgroup.remove(machine.host, "/pod")
    cgroup.remove(machine.host, "/gone")
    assert sorted(p.name for p in top.iterdir()) == ["busy"]
