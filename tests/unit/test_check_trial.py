# SPDX-License-Identifier: MIT
"""Tests of ``kexec.file-load``: it loads as an upgrade would, and leaves nothing loaded, whatever happens."""

import gzip
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.checks import findings, only, situation
from builders.host import Machine
from builders.kernel import bzimage

from upgrade import linux
from upgrade.check.kexec import allowed, trial
from upgrade.check.model import Status
from upgrade.check.situation import Situation
from upgrade.errors import ExitStatus, Refusal, UpgradeError
from upgrade.kexec import load
from upgrade.kexec.cmdline import session_of


class Kexec:
    """The kernel's one slot for another kernel."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.calls: list[tuple[Any, ...]] = []
        self.during: Callable[[], str] = lambda: "kexec_file_load"
        machine.file(allowed.LOADED, "0")

    def load(self, kernel: Path, initrd: bytes, line: str) -> str:
        self.calls.append(("load", kernel, initrd, session_of(line)))
        self.machine.file(allowed.LOADED, "1")
        return self.during()

    def unload(self) -> None:
        self.calls.append(("unload",))
        self.machine.file(allowed.LOADED, "0")

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def kexec(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Kexec:
    fake = Kexec(machine)
    monkeypatch.setattr(load, "load", fake.load)
    monkeypatch.setattr(linux, "kexec_unload", fake.unload)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return fake


@pytest.fixture
def here(machine: Machine) -> Situation:
    kernel = machine.file("/boot/vmlinuz-6.12.107", "")
    kernel.write_bytes(bzimage(gzip.compress(b"kernel")))
    machine.file("/boot/initrd.img", "the initrd")
    return situation(machine.host, kernel=str(kernel))


def test_it_is_loaded_and_unloaded(kexec: Kexec, here: Situation) -> None:
    found = only(trial.file_load, here, Status.PASS)
    assert found.subject == str(here.target.path)
    assert found.seen.startswith("kexec_file_load took it with its initrd in ")
    assert kexec.calls == [("load", here.target.path, b"the initrd\n", trial.SESSION), ("unload",)]
    assert not load.is_loaded(here.host)


def test_the_older_call(kexec: Kexec, here: Situation) -> None:
    kexec.during = lambda: "kexec_load"
    assert only(trial.file_load, here, Status.WARN).seen.startswith("kexec_load took it")
    assert kexec.names == ["load", "unload"]


@pytest.mark.parametrize("error", [Refusal("not signed"), RuntimeError("bug"), KeyboardInterrupt()])
def test_it_is_unloaded_when_the_load_fails(kexec: Kexec, here: Situation, error: BaseException) -> None:
    def fail() -> str:
        raise error

    kexec.during = fail
    with pytest.raises(type(error)):
        findings(trial.file_load, here)
    assert kexec.names == ["load", "unload"]


@pytest.mark.parametrize("number", trial.ENDING)
def test_a_signal_waits_for_the_unload(kexec: Kexec, here: Situation, number: signal.Signals) -> None:
    seen: list[list[str]] = []

    def end(_number: int, _frame: object) -> None:
        seen.append(list(kexec.names))

    def interrupted() -> str:
        os.kill(os.getpid(), number)
        return "kexec_file_load"

    kexec.during = interrupted
    before = signal.signal(number, end)
    try:
        findings(trial.file_load, here)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    assert seen == [["load", "unload"]]


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        (allowed.LOADED, "1", "loaded already"),
        (allowed.DISABLED, "1", "switched off"),
        (allowed.LIMIT, "3", "kexec_load_limit_reboot"),
    ],
)
def test_what_keeps_it_from_trying(
    kexec: Kexec, here: Situation, machine: Machine, path: str, text: str, reason: str
) -> None:
    machine.file(path, text)
    assert reason in only(trial.file_load, here, Status.SKIP).reason
    assert kexec.calls == []


def test_it_needs_root(kexec: Kexec, here: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UpgradeError, match="needs root") as caught:
        findings(trial.file_load, here)
    assert caught.value.status is ExitStatus.NOT_PRIVILEGED
    assert kexec.calls == []


def test_a_run_does_not_ask() -> None:
    from upgrade.check import kexec

    assert [check.id for check in kexec.CHECKS if not check.in_run] == ["kexec.file-load"]
