# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.arrival``."""

import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.programs import Programs
from builders.session import HERTZ, STAMPS_S, TIES, session

from memfs import pmem, store
from memfs.namespace import NAMESPACES
from upgrade import paths
from upgrade.clock import Clock, Tie, frequency
from upgrade.errors import UpgradeError
from upgrade.restore import arrival
from upgrade.session import FILE, JUMP_FILE

IDENTITY = session().id


class Arriving:
    """A new kernel that finds range M with a session in it."""

    def __init__(self, machine: Machine, programs: Programs, here: Path) -> None:
        self.machine = machine
        self.here = here
        self.save()
        (paths.STORE / JUMP_FILE).write_bytes(struct.pack("<Q", 4242))
        machine.file("/proc/cmdline", f"memmap=256M!4G seamless_upgrade.session={IDENTITY}")
        machine.file("/proc/sys/kernel/osrelease", session().kernel_to)
        base = machine.root / NAMESPACES / "namespace0.0"
        (base / "block" / "pmem0").mkdir(parents=True)
        (base / "resource").write_text("0x100000000\n")
        (base / "size").write_text(f"{256 << 20}\n")
        self.device = machine.root / "dev" / "pmem0"
        self.device.parent.mkdir()
        self.device.write_bytes(bytes(8 << 20))
        programs.real("mkfs.ext4")
        programs.add("modprobe")
        programs.add("mount")
        store.make(self.device)

    def save(self, **members: Any) -> None:
        session(**members).save(paths.STORE / FILE)

    def open(self) -> arrival.Arrival:
        return arrival.open_store(self.machine.host, IDENTITY)


@pytest.fixture
def arriving(machine: Machine, programs: Programs, here: Path, monkeypatch: pytest.MonkeyPatch) -> Arriving:
    monkeypatch.setattr("memfs.pmem.wait", partial(pmem.wait, root=machine.root))
    monkeypatch.setattr(arrival, "PMEM_TIMEOUT_S", 0.05)
    return Arriving(machine, programs, here)


def test_a_session_that_came_across_is_believed(arriving: Arriving, programs: Programs) -> None:
    arrived = arriving.open()
    assert arrived.session == session()
    assert arrived.rate.hertz == pytest.approx(HERTZ)
    assert arrived.jumped_at == 4242
    assert arrived.device == arriving.device
    assert set(pmem.MODULES) <= {word for call in programs.calls("modprobe") for word in call}
    assert programs.calls("mount")[0][-2:] == [str(arriving.device), str(paths.STORE)]


def test_a_range_that_is_mounted_already_is_read_once_more(
    arriving: Arriving, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a restore process that died."""
    monkeypatch.setattr("os.path.ismount", lambda path: path == paths.STORE)
    assert arriving.open().session == session()
    assert programs.calls("mount") == []


@pytest.mark.parametrize("content", [bytes(8), b"", b"short"])
def test_without_the_moment_of_the_jump_it_is_the_last_one_before(arriving: Arriving, content: bytes) -> None:
    (paths.STORE / JUMP_FILE).write_bytes(content)
    assert arriving.open().jumped_at == STAMPS_S["quiesced"]


def damage(arriving: Arriving) -> None:
    file = paths.STORE / FILE
    file.write_bytes(file.read_bytes().replace(b"host7", b"host8"))


def no_range(arriving: Arriving) -> None:
    arriving.machine.file("/proc/cmdline", "quiet")


def no_device(arriving: Arriving) -> None:
    arriving.device.unlink()


def no_store(arriving: Arriving) -> None:
    store.wipe(arriving.device)


def no_record(arriving: Arriving) -> None:
    (paths.STORE / FILE).unlink()


def other_kernel(arriving: Arriving) -> None:
    arriving.machine.file("/proc/sys/kernel/osrelease", "6.12.48")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_range, "no memmap= range"),
        (no_device, "no pmem device at memmap=256M!4G"),
        (no_store, "its contents did not survive"),
        (no_record, "No such file"),
        (damage, "its checksum differs"),
        (other_kernel, "but 6.12.48 runs"),
        (lambda a: a.save(id="another"), "holds session another"),
    ],
)
def test_what_cannot_be_believed_says_why(
    arriving: Arriving, change: Callable[[Arriving], None], reason: str
) -> None:
    change(arriving)
    with pytest.raises(UpgradeError) as caught:
        arriving.open()
    assert reason in str(caught.value)
    assert caught.value.subject


def test_a_mount_that_fails_says_why(arriving: Arriving, programs: Programs) -> None:
    programs.add("mount", "echo 'dax unsupported' >&2; exit 32")
    with pytest.raises(UpgradeError, match="dax unsupported"):
        arriving.open()


def arrived(since_jump_s: float, jumped_at: int = TIES[-1].tsc) -> tuple[arrival.Arrival, Clock]:
    """Return an arrival whose counter stands at so many seconds after the jump."""
    made = arrival.Arrival(session(), frequency(*TIES), jumped_at, Path("/dev/pmem0"))
    return made, Clock(lambda: jumped_at + round(since_jump_s * HERTZ))


def at(monkeypatch: pytest.MonkeyPatch, boottime_s: float) -> list[int]:
    """Let the new kernel run for so long; return the list of times to which its clock is set."""
    set_to: list[int] = []
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _which: round(boottime_s * 1e9))
    monkeypatch.setattr(time, "clock_settime_ns", lambda _which, ns: set_to.append(ns))
    return set_to


def test_the_wall_clock_is_set_by_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to = at(monkeypatch, 5.0)
    arrival.set_wall_clock(*arrived(7.25))
    assert set_to == [pytest.approx(TIES[-1].wall_ns + 7_250_000_000, abs=2)]


@pytest.mark.parametrize(("since_jump_s", "boottime_s"), [(-1.0, 5.0), (4.0, 5.0), (1e6, 5.0)])
def test_a_counter_that_did_not_run_on_sets_no_clock(
    monkeypatch: pytest.MonkeyPatch, since_jump_s: float, boottime_s: float
) -> None:
    set_to = at(monkeypatch, boottime_s)
    with pytest.raises(UpgradeError, match="did not run on"):
        arrival.set_wall_clock(*arrived(since_jump_s))
    assert set_to == []


def test_the_plan_is_only_that_of_the_session(here: Path) -> None:
    assert arrival.plan_of(IDENTITY) is None
    session().save(paths.PLAN)
    assert arrival.plan_of(IDENTITY) == session()
    assert arrival.plan_of("another") is None
    paths.PLAN.write_text("nonsense")
    assert arrival.plan_of(IDENTITY) is None


def test_a_clock_that_stood_still_is_an_error_for_users(arriving: Arriving) -> None:
    arriving.save(ties=(TIES[0], Tie(TIES[0].tsc, 10**9, 10**18, 1)))
    with pytest.raises((UpgradeError, ValueError), match="does not run"):
        arriving.open()


@pytest.mark.parametrize(
    ("lines", "text"),
    [([], ""), (["a"], "a"), (list("abc"), "a; b; c"), (list("abcde"), "a; b; c and 2 more")],
)
def test_many_lines_are_summarized(lines: list[str], text: str) -> None:
    assert arrival.summarize(lines) == text
