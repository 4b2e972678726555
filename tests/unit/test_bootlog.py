# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.bootlog`` on a device that behaves as ``/dev/kmsg`` does."""

import errno
import os
import time
from types import SimpleNamespace

import pytest
from builders.host import Machine

from upgrade.clock import Clock, Frequency
from upgrade.restore import bootlog
from upgrade.restore.bootlog import KERNEL_START, RATE_LIMIT, tsc_of

HERTZ = 1_000_000  # a tick a microsecond
RATE = Frequency(float(HERTZ), 0.0)
BOOTED_AT = 500_000_000  # TSC at which the log's clock was zero


class Kmsg:
    """Records, and a clock that both the log and the counter follow."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.now_us = 9_000_000
        self.records: list[str | OSError] = []
        self.swallows = False
        self.limits: list[str] = []
        self.closed = False

    def log(self, at_us: int, text: str) -> None:
        self.records.append(f"6,1234,{at_us},-;{text}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:03.0\n")

    def tsc(self) -> int:
        self.now_us += 10
        return BOOTED_AT + self.now_us

    def open(self, _path: object, flags: int) -> int:
        assert flags & os.O_NONBLOCK
        return 77

    def write(self, fd: int, data: bytes) -> int:
        assert fd == 77
        self.limits.append(self.machine.host.read_or(RATE_LIMIT, "none"))
        self.now_us += 20
        if not self.swallows:
            self.log(self.now_us, data.decode())
        return len(data)

    def read(self, fd: int, _size: int) -> bytes:
        assert fd == 77
        if not self.records:
            raise BlockingIOError(errno.EAGAIN, "")
        record = self.records.pop(0)
        if isinstance(record, OSError):
            raise record
        return record.encode()

    def close(self, _fd: int) -> None:
        self.closed = True


@pytest.fixture
def kmsg(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Kmsg:
    device = Kmsg(machine)
    calls = {name: getattr(device, name) for name in ("open", "write", "read", "close")}
    monkeypatch.setattr(bootlog, "os", SimpleNamespace(**{**vars(os), **calls}))
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _which: device.now_us * 1000)
    machine.file(RATE_LIMIT, "ratelimit")
    return device


def found(kmsg: Kmsg, *marks: str) -> dict[str, int]:
    return tsc_of(marks, Clock(kmsg.tsc), RATE, kmsg.machine.host)


def test_moments_of_the_log_become_stamps(kmsg: Kmsg) -> None:
    kmsg.log(0, "Linux version 6.12.57")
    kmsg.log(3_100_000, "first userspace; and more")
    kmsg.log(3_500_000, "first userspace")
    moments = found(kmsg, "first userspace", "never")
    assert moments.keys() == {KERNEL_START, "first userspace"}
    assert moments[KERNEL_START] == pytest.approx(BOOTED_AT, abs=30)
    assert moments["first userspace"] == pytest.approx(BOOTED_AT + 3_100_000, abs=30)
    assert kmsg.closed


def test_our_own_mark_ties_the_clocks_even_between_others(kmsg: Kmsg) -> None:
    kmsg.log(1_000_000, "seamless-upgrade: tie 12345")  # of a start before
    kmsg.records.append(BrokenPipeError(errno.EPIPE, ""))
    assert found(kmsg)[KERNEL_START] == pytest.approx(BOOTED_AT, abs=30)


def test_a_swallowed_mark_is_made_up_for(kmsg: Kmsg) -> None:
    kmsg.swallows = True
    kmsg.log(3_100_000, "first userspace")
    moments = found(kmsg, "first userspace")
    assert moments["first userspace"] == pytest.approx(BOOTED_AT + 3_100_000, abs=60)


def test_the_limit_is_lifted_for_our_mark_only(kmsg: Kmsg) -> None:
    found(kmsg)
    assert kmsg.limits == ["on"]
    assert kmsg.machine.written(RATE_LIMIT) == ["on", "ratelimit"]


def test_a_kernel_without_the_limit(kmsg: Kmsg) -> None:
    (kmsg.machine.root / RATE_LIMIT.lstrip("/")).unlink()
    assert KERNEL_START in found(kmsg)


def test_other_errors_are_told_and_nothing_stays_open(kmsg: Kmsg) -> None:
    kmsg.records.append(OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        found(kmsg)
    assert kmsg.closed
    assert kmsg.machine.written(RATE_LIMIT)[-1] == "ratelimit"


@pytest.mark.skipif(os.geteuid() != 0, reason="/dev/kmsg can be written by root only")
def test_the_real_log_begins_with_the_kernel(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    clock = Clock()
    first = clock.tie()
    time.sleep(0.05)
    last = clock.tie()
    rate = Frequency((last.tsc - first.tsc) * 1e9 / (last.raw_ns - first.raw_ns), 0.0)
    start = tsc_of((), clock, rate, machine.host)[KERNEL_START]
    running_s = rate.ns(clock.tsc() - start) / 1e9
    assert running_s == pytest.approx(time.clock_gettime(time.CLOCK_MONOTONIC), rel=0.02, abs=2)
