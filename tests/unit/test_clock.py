# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.clock``."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrade.clock import Clock, Frequency, Tie, frequency, wall_ns


def test_the_real_counter_agrees_with_the_kernel_s_clock() -> None:
    clock = Clock()
    first = clock.tie()
    time.sleep(0.05)
    middle, wall_before = clock.tsc(), time.time_ns()
    time.sleep(0.05)
    last = clock.tie()
    rate = frequency(first, last)
    assert 0.09e9 < rate.ns(last.tsc - first.tsc) < 5e9
    assert rate.ns(last.tsc - first.tsc) == pytest.approx(last.raw_ns - first.raw_ns, abs=2)
    # Between the two readings of "middle" this process may have been off the processor for a while.
    assert wall_ns(last, middle, rate) == pytest.approx(wall_before, abs=0.02e9)


def test_the_counter_runs_forward() -> None:
    clock = Clock()
    readings = [clock.tsc() for _ in range(1000)]
    assert readings == sorted(readings)
    assert readings[-1] > readings[0]


def test_the_tightest_of_several_readings_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = [900, 500, 70, 300] + [800] * 5

    def raw() -> Iterator[int]:
        now = 0
        for width in widths:
            yield now
            now += width
            yield now
            now += 1000

    times = raw()
    monkeypatch.setattr(
        time, "clock_gettime_ns", lambda which: next(times) if which == time.CLOCK_MONOTONIC_RAW else 42
    )
    counter = iter(range(100, 200))
    tie = Clock(lambda: next(counter)).tie()
    assert tie == Tie(tsc=102, raw_ns=3400 + 35, wall_ns=42, error_ns=70)


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (Tie(0, 0, 0, 0), Tie(0, 10, 0, 0)),
        (Tie(0, 0, 0, 0), Tie(10, 0, 0, 0)),
        (Tie(10, 10, 0, 0), Tie(0, 0, 0, 0)),
        (Tie(10, 0, 0, 0), Tie(0, 10, 0, 0)),
    ],
)
def test_a_counter_that_does_not_run_is_told(first: Tie, last: Tie) -> None:
    with pytest.raises(ValueError, match="does not run"):
        frequency(first, last)


@given(
    hertz=st.integers(10**8, 5 * 10**9),
    seconds=st.integers(1, 10_000),
    later=st.integers(-(10**13), 10**13),
    start=st.integers(0, 2**62),
)
def test_stamps_mean_what_the_ties_say(hertz: int, seconds: int, later: int, start: int) -> None:
    first = Tie(start, 0, 10**18, 50)
    last = Tie(start + hertz * seconds, seconds * 10**9, 10**18 + seconds * 10**9, 70)
    rate = frequency(first, last)
    assert rate.hertz == pytest.approx(hertz)
    assert rate.relative_error >= 120 / (seconds * 10**9)
    assert wall_ns(last, last.tsc + later, rate) == pytest.approx(
        last.wall_ns + later * 10**9 / hertz, abs=500
    )


@given(st.integers(-(10**15), 10**15))
def test_the_error_is_never_nothing_and_never_negative(ticks: int) -> None:
    rate = Frequency(2e9, 1e-6)
    assert rate.error_ns(ticks) >= 1
    assert rate.error_ns(ticks) == rate.error_ns(-ticks)
    assert rate.error_ns(ticks) == pytest.approx(abs(ticks) / 2 * 1e-6, abs=2)
