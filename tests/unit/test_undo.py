# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.undo``: whatever goes wrong on the way, everything else is undone, the last step first."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from builders.disk import disk_full_after
from builders.host import Machine
from builders.programs import Programs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upgrade import undo
from upgrade.host import Host
from upgrade.undo import Undo


class Recorder:
    """Actions that write down that they were done, and fail where they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[int] = []
        self.file: Path | None = None
        self.left: list[int] = []
        self.broken = True
        monkeypatch.setattr(undo, "ACTIONS", {"act": self._act, "thaw": self._act})

    def _act(self, _host: Host, *, number: int, fails: bool = False) -> None:
        self.done.append(number)
        if self.file is not None:
            self.left.append(len(self.file.read_text().splitlines()))
        if fails and self.broken:
            raise OSError(5, "does not want to")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@given(st.lists(st.booleans(), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_all_is_undone_in_reverse_whatever_fails(
    tmp_path: Path, recorder: Recorder, fails: list[bool]
) -> None:
    recorder.done.clear()
    recorder.broken = True
    (tmp_path / "undo").unlink(missing_ok=True)
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    for number, failing in enumerate(fails):
        stack.push("act", number=number, fails=failing)
    problems = stack.unwind()
    assert recorder.done == list(reversed(range(len(fails))))
    assert len(problems) == sum(fails)
    assert all("could not undo act" in problem and "does not want to" in problem for problem in problems)
    assert len(stack.left()) == sum(fails)
    recorder.done.clear()
    assert stack.unwind() == problems  # tried once more, in the same order
    recorder.broken = False
    recorder.done.clear()
    assert Undo(Host(tmp_path), stack.file).unwind() == []
    assert recorder.done == [number for number, failing in reversed(list(enumerate(fails))) if failing]
    assert not stack.file.exists()


def test_another_process_undoes_what_is_left(tmp_path: Path, recorder: Recorder) -> None:
    first = Undo(Host(tmp_path), tmp_path / "undo")
    first.push("act", number=1)
    first.push("thaw", number=2)
    assert Undo(Host(tmp_path), tmp_path / "undo").unwind() == []
    assert recorder.done == [2, 1]
    assert first.unwind() == []
    assert recorder.done == [2, 1]


def test_what_is_undone_leaves_the_file_only_afterwards(tmp_path: Path, recorder: Recorder) -> None:
    recorder.file = tmp_path / "undo"
    stack = Undo(Host(tmp_path), recorder.file)
    for number in range(3):
        stack.push("act", number=number)
    stack.unwind()
    assert recorder.left == [3, 2, 1]


def test_the_end_of_the_block_undoes_with_the_signals_kept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def interrupted(_host: Host) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        done.append("all of it")

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(undo, "ACTIONS", {"act": interrupted})
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Undo(Host(tmp_path), tmp_path / "undo") as stack:
            stack.push("act")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done == ["all of it"]


def test_some_can_be_undone_before_the_others(tmp_path: Path, recorder: Recorder) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    for number, action in enumerate(["act", "thaw", "act", "thaw"]):
        stack.push(action, number=number)
    stack.unwind(only={"thaw"})
    assert recorder.done == [3, 1]
    stack.unwind()
    assert recorder.done == [3, 1, 2, 0]


def test_a_thaw_that_failed_is_tried_again_with_the_others(tmp_path: Path, recorder: Recorder) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    stack.push("act", number=0)
    stack.push("thaw", number=1, fails=True)
    assert len(stack.unwind(only={"thaw"})) == 1
    recorder.broken = False
    assert stack.unwind() == []
    assert recorder.done == [1, 1, 0]
    assert stack.left() == []


def test_equal_entries_are_each_undone(tmp_path: Path, recorder: Recorder) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    for number in (1, 2, 1):
        stack.push("act", number=number)
    assert stack.unwind() == []
    assert recorder.done == [1, 2, 1]


def test_a_step_that_did_not_happen_is_forgotten(tmp_path: Path, recorder: Recorder) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    stack.push("thaw", number=1)
    stack.push("act", number=2)
    stack.push("thaw", number=3)
    stack.push("act", number=4)
    stack.forget("thaw")
    stack.unwind()
    assert recorder.done == [4, 2, 1]


def test_an_unknown_action_is_not_taken(tmp_path: Path) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    with pytest.raises(KeyError):
        stack.push("explode")
    assert stack.unwind() == []


def test_an_action_of_another_version_keeps_nothing_from_being_undone(
    tmp_path: Path, recorder: Recorder
) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    stack.push("act", number=1)
    with stack.file.open("a") as f:
        f.write(json.dumps({"action": "later", "arguments": {}}) + "\n")
        f.write(json.dumps({"action": "act", "arguments": {"what": 1}}) + "\n")
    assert len(stack.unwind()) == 2
    assert recorder.done == [1]
    assert stack.left() == ["later", "act"]  # a program of that version can undo them


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_keeps_nothing_from_being_undone(
    tmp_path: Path, recorder: Recorder, cut: int
) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    for number in range(3):
        stack.push("act", number=number)
    size = stack.file.stat().st_size
    os.truncate(stack.file, size - cut)
    stack.unwind()
    assert recorder.done == ([2, 1, 0] if cut == 1 else [1, 0])


def test_a_full_run_keeps_nothing_from_being_undone(tmp_path: Path, recorder: Recorder) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    for number in range(3):
        stack.push("act", number=number)
    with disk_full_after(stack.file.stat().st_size + 10):
        with pytest.raises(OSError, match="File too large"):
            stack.push("act", number=3)
        stack.unwind()
    assert recorder.done == [2, 1, 0]


def test_a_file_that_cannot_be_written_keeps_nothing_from_being_undone(
    tmp_path: Path, recorder: Recorder
) -> None:
    stack = Undo(Host(tmp_path), tmp_path / "undo")
    for number in range(3):
        stack.push("act", number=number)
    with disk_full_after(0):
        stack.unwind()
    assert recorder.done == [2, 1, 0]


def test_a_kill_between_two_writes_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever call the process was killed in, another process still finds what was not undone."""

    class Killed(BaseException):
        pass

    def killed(*_arguments: Any, **_keywords: Any) -> Any:
        raise Killed

    monkeypatch.setattr(undo, "ACTIONS", {"act": lambda host, number: done.append(number)})
    for name in ("write", "replace", "rename", "fsync"):
        done: list[int] = []
        stack = Undo(Host(tmp_path), tmp_path / f"undo-{name}")
        for number in range(3):
            stack.push("act", number=number)
        with monkeypatch.context() as patch:
            _break(patch, name, killed)
            with suppress(Killed):
                stack.unwind()
        Undo(Host(tmp_path), stack.file).unwind()
        assert set(done) == {0, 1, 2}, name


def _break(patch: pytest.MonkeyPatch, name: str, killed: Any) -> None:
    """Let the next call of a kind be the one in which the process is killed."""
    if name == "write":

        def truncate_only(path: Path, *_arguments: Any, **_keywords: Any) -> Any:
            path.open("w").close()
            killed()

        patch.setattr(Path, "write_text", truncate_only)
        patch.setattr(Path, "write_bytes", truncate_only)
        return
    if name in ("replace", "rename"):
        patch.setattr(Path, name, killed)
    patch.setattr(os, name, killed)


def test_containers_are_thawed_and_files_removed(machine: Machine, tmp_path: Path) -> None:
    machine.cgroup("/a")
    machine.cgroup("/b")
    machine.file("/sys/fs/cgroup/a/cgroup.freeze", "1")
    plan = machine.file("/plan.json", "{}")
    stack = Undo(machine.host, tmp_path / "undo")
    stack.push("thaw", cgroups=["/a", "/gone", "/b"])
    stack.push("remove_file", path="/plan.json")
    stack.push("remove_file", path="/plan.json")
    assert stack.unwind() == []
    assert machine.host.read("/sys/fs/cgroup/a/cgroup.freeze").startswith("0")
    assert not plan.exists()


def test_services_come_back_and_the_lock_goes(machine: Machine, tmp_path: Path, programs: Programs) -> None:
    programs.add("nft")
    programs.add("systemctl", '[ "$1" != list-units ] || echo "dbus.service loaded active running"')
    stack = Undo(machine.host, tmp_path / "undo")
    stack.push("unlock")
    stack.push("resume", units=["cron.service", "dbus.service", "ssh.socket"])
    assert stack.unwind() == []
    assert ["systemctl", "start", "--", "cron.service", "ssh.socket"] in programs.calls()
    assert programs.calls()[-1] == ["nft", "-f", "-"]
    assert "delete table" in programs.inputs("nft")[-1]


@pytest.mark.parametrize("action", sorted(undo.ACTIONS))
def test_every_action_survives_being_undone_when_nothing_was_done(
    machine: Machine, tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """The undo is written before its step: a kill in between must leave nothing behind, nor complain."""
    programs.add("nft")
    programs.add("systemctl")
    monkeypatch.setattr("upgrade.linux.kexec_unload", lambda: None)  # would need a kernel that allows it
    arguments: dict[str, dict[str, Any]] = {
        "release": {"where": str(tmp_path), "start_bytes": 1 << 60, "size_bytes": 1 << 20},
        "thaw": {"cgroups": ["/never"]},
        "thaw_filesystem": {"where": str(tmp_path)},
        "resume": {"units": []},
        "movers": {"before": {}},
        "blocks": {"spans": []},
        "swap_limits": {"limits": {}},
        "unswap": {"device": str(tmp_path / "never")},
        "forget_units": {"session": "never"},
        "start_cold": {"file": str(tmp_path / "never")},
        "remove_file": {"path": "/never"},
    }
    if action == "thaw_filesystem" and os.geteuid() != 0:
        pytest.skip("FITHAW needs root")
    stack = Undo(machine.host, tmp_path / "undo")
    stack.push(action, **arguments.get(action, {}))
    assert stack.unwind() == []
