# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.threads`` on fake processes in fake cgroups."""

import os
from pathlib import Path

import pytest
from builders.host import VDSO, Machine, at, vdso_line

from upgrade.dump import threads
from upgrade.dump.threads import Caught, instruction_pointer, leave_vdso, vdso_span

INSIDE, OUTSIDE = at(VDSO[0] + 0x640), at(0x55D0C0A00123)


@pytest.fixture
def frozen(machine: Machine) -> Machine:
    machine.cgroup("/a", [5, 6])
    machine.process(5, threads={5: OUTSIDE, 51: OUTSIDE, 52: OUTSIDE})
    machine.process(6, threads={6: "0 0x3 0x7f 0x400 0x0 0x0 0x0 0x7ffc2a1b3c48 0x7f1c8d0e1fce"})
    return machine


def put(machine: Machine, thread: int, where: str, pid: int = 5) -> None:
    machine.file(f"/proc/{pid}/task/{thread}/syscall", where)


def test_nothing_is_done_when_nobody_is_inside(frozen: Machine) -> None:
    assert leave_vdso(frozen.host, "/a", 1) == Caught(0, 0, 0)
    assert frozen.writes == []
    assert Caught(0, 0, 0).action == "none needed"


@pytest.mark.parametrize(
    ("pointer", "inside"),
    [(VDSO[0], 1), (VDSO[1] - 1, 1), (VDSO[0] - 1, 0), (VDSO[1], 0), (0xFFFFFFFFFF600000, 0)],
)
def test_the_edges_of_the_vdso(frozen: Machine, pointer: int, inside: int) -> None:
    put(frozen, 51, at(pointer))
    assert threads.inside(frozen.host, [5, 6], {}) == inside


def test_the_container_is_thawed_and_frozen_until_nobody_is_inside(frozen: Machine) -> None:
    put(frozen, 51, INSIDE)
    put(frozen, 52, INSIDE)
    put(frozen, 6, INSIDE, 6)
    order = [(51, 5), (6, 6), (52, 5)]

    def one_leaves(_cgroup: str) -> None:
        thread, pid = order.pop(0)
        put(frozen, thread, OUTSIDE, pid)

    frozen.after_thaw = one_leaves
    caught = leave_vdso(frozen.host, "/a", 1)
    assert caught == Caught(3, 0, 3)
    assert caught.action == "thawed and frozen again 3 times until none was inside"
    assert frozen.written("/sys/fs/cgroup/a/cgroup.freeze") == ["0", "1"] * 3


def test_it_is_bounded_and_ends_frozen(frozen: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_PAUSE_S", 0.0)
    put(frozen, 51, INSIDE)
    caught = leave_vdso(frozen.host, "/a", 1)
    assert caught == Caught(1, 1, threads.ATTEMPTS)
    assert caught.action == f"thawed and frozen again {threads.ATTEMPTS} times, 1 still inside"
    assert frozen.host.read("/sys/fs/cgroup/a/cgroup.freeze").startswith("1")


def test_one_time_is_singular() -> None:
    assert Caught(1, 0, 1).action == "thawed and frozen again 1 time until none was inside"


def test_who_comes_and_who_goes_meanwhile_is_seen(frozen: Machine) -> None:
    put(frozen, 51, INSIDE)

    def change(_cgroup: str) -> None:
        put(frozen, 51, OUTSIDE)
        if "7" not in os.listdir(frozen.root / "proc"):
            frozen.process(7, threads={7: INSIDE})
            frozen.file("/sys/fs/cgroup/a/cgroup.procs", "6\n7\n8")
        else:
            put(frozen, 7, OUTSIDE, 7)

    frozen.after_thaw = change
    assert leave_vdso(frozen.host, "/a", 1) == Caught(1, 0, 2)


def test_a_program_that_is_executed_meanwhile_has_its_vdso_elsewhere(frozen: Machine) -> None:
    put(frozen, 51, INSIDE)
    elsewhere = VDSO[0] + (1 << 30)

    def execute(_cgroup: str) -> None:
        if frozen.host.read("/proc/5/maps") == vdso_line(*VDSO):
            frozen.file("/proc/5/maps", vdso_line(elsewhere, elsewhere + 0x2000))
            put(frozen, 51, at(elsewhere + 0x10))
        else:
            put(frozen, 51, OUTSIDE)

    frozen.after_thaw = execute
    assert leave_vdso(frozen.host, "/a", 1) == Caught(1, 0, 2)


@pytest.mark.parametrize(
    ("syscall", "pointer"),
    [
        ("running", None),
        ("", None),
        ("-1 0x7ffc 0x1234", 0x1234),
        ("202 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffc 0xffffffffff600400", 0xFFFFFFFFFF600400),
    ],
)
def test_where_a_thread_stopped(syscall: str, pointer: int | None) -> None:
    assert instruction_pointer(syscall) == pointer


def test_where_the_vdso_lies() -> None:
    assert vdso_span(vdso_line(*VDSO)) == VDSO
    assert vdso_span("") is None
    assert vdso_span(vdso_line(0xF7F5E000, 0xF7F60000)) is None  # of a 32-bit task
    assert vdso_span(vdso_line(*VDSO).replace("[vdso]", "[vvar]")) is None


def test_our_own_vdso_is_found() -> None:
    span = vdso_span(Path("/proc/self/maps").read_text())
    assert span is not None
    assert span[0] % 4096 == 0
    assert 4096 <= span[1] - span[0] <= 65536


def test_threads_are_counted(frozen: Machine) -> None:
    assert threads.count(frozen.host, [5, 6, 4711]) == 4
    assert threads.count(frozen.host, []) == 0
