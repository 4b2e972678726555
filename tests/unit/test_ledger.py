# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.ledger``: what a process that was killed has said is known to the next one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders.disk import disk_full_after
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upgrade.restore import ledger as module
from upgrade.restore.ledger import Back, Begun, Ledger

BEGUN = Begun(False, 300.0, ())


def take(file: Path, at: int = 100) -> Ledger:
    found = Ledger.take(file, at)
    assert found is not None
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_all_is_there_again(file: Path) -> None:
    first = take(file, 50)
    assert (first.starts, first.status, first.ended) == (1, None, False)
    first.begin(0, Begun(True, 12.5, ("/beside",)))
    first.let_run(0)
    first.end(0, Back("restored", "in time", 77, lazy=True))
    first.report(5)
    first.close()
    second = take(file, 60)
    assert (second.starts, second.begun_at, second.status, second.ended) == (2, 50, 5, False)
    assert second.begun == {0: Begun(True, 12.5, ("/beside",))}
    assert second.back == {0: Back("restored", "in time", 77, lazy=True)}
    assert (second.may_run, second.interrupted) == ({0}, set())
    second.finish()
    second.close()
    third = take(file, 70)
    assert (third.ended, third.starts) == (True, 2)
    third.close()


def test_what_was_being_restored_when_a_process_died_stays_known(file: Path) -> None:
    first = take(file)
    for number in range(3):
        first.begin(number, BEGUN)
    first.end(1, Back("restored", None, 1))
    first.close()
    second = take(file)
    assert second.interrupted == set(second.unsettled()) == {0, 2}
    second.end(0, Back("restored", None, 2))
    second.begin(2, BEGUN)
    second.close()
    third = take(file)
    assert (third.interrupted, set(third.unsettled())) == ({0, 2}, {2})
    third.close()


@given(st.integers(min_value=0))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_a_torn_line_is_a_step_that_was_not_taken(file: Path, cut: int) -> None:
    file.unlink(missing_ok=True)
    first = take(file)
    first.begin(0, BEGUN)
    first.end(0, Back("restored", None, 1))
    before = file.stat().st_size
    first.begin(1, BEGUN)
    size = file.stat().st_size
    first.close()
    os.truncate(file, before + cut % (size - before))
    second = take(file)
    assert set(second.back) == {0}
    assert 1 not in second.unsettled() or cut % (size - before) == size - before - 1
    second.begin(2, BEGUN)
    second.close()
    third = take(file)
    assert 2 in third.interrupted
    assert third.starts == 3
    third.close()


def test_it_belongs_to_one_at_a_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKE_S", 0.05)
    first = take(file)
    assert Ledger.take(file, 1) is None
    first.close()
    second = take(file)
    assert second.starts == 2
    second.close()


def test_no_child_keeps_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKE_S", 0.05)
    first = take(file)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        first.close()
        second = take(file)
        assert child.poll() is None
        second.close()
        assert child.stdin is not None
        child.stdin.close()


def test_a_full_disk_keeps_nothing_from_being_known_to_the_process_itself(file: Path) -> None:
    with disk_full_after(0):
        first = take(file)
        with pytest.raises(OSError, match="File too large"):
            first.begin(0, BEGUN)
    assert first.starts == 1
    first.end(0, Back("restored", None, 1))
    assert set(first.back) == {0}
    first.close()
    second = take(file)
    assert second.back == first.back
    second.close()
