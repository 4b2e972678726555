# SPDX-License-Identifier: MIT
"""From the stamps of a guest to downtime and phases."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrade.bench import measure
from upgrade.bench.matrix import Way
from upgrade.bench.measure import Noted

HERTZ = 1e9

STAMPS = {
    Way.IMAGES: ("marked", "gone", "dumped", "jump", "kernel", "userspace", "back", "here"),
    Way.KEXEC: ("marked", "gone", "jump", "kernel", "userspace", "started", "here"),
    Way.REBOOT: ("marked", "gone", "jump", "kernel", "userspace", "started", "here"),
}


def built(way: Way, steps: list[int]) -> Noted:
    """Return what a guest noted whose stamps lie ``steps`` apart."""
    at, found = 1, {}
    for name, step in zip(STAMPS[way], steps, strict=False):
        at += step
        found[name] = at
    return Noted(
        marked=found["marked"],
        begins=(found["gone"],),
        ends=(found["here"],),
        started=(found.get("started", 0),),
        kernel=found["kernel"],
        userspace=found["userspace"],
        hertz=HERTZ,
        stamps={name: found[name] for name in ("dumped", "back") if name in found},
        jump=found["jump"],
    )


@given(st.sampled_from(sorted(STAMPS)), st.lists(st.integers(1, 10**10), min_size=8, max_size=8))
def test_the_phases_are_the_whole_downtime(way: Way, steps: list[int]) -> None:
    noted = built(way, steps)
    phases = noted.phases(way)
    assert noted.downtime_seconds is not None
    assert sum(phase.seconds for phase in phases) == pytest.approx(noted.downtime_seconds)
    assert all(phase.seconds > 0 for phase in phases)
    assert len({phase.name for phase in phases}) == len(phases)


def test_a_counter_that_began_anew_is_noticed() -> None:
    noted = built(Way.REBOOT, [100] * 8)
    assert noted.continuous
    reset = replace(noted, begins=(3,), ends=(5,), kernel=1)
    assert not reset.continuous
    assert reset.downtime_seconds is None
    assert reset.container_seconds == ()
    assert reset.phases(Way.REBOOT) == ()
    assert reset.floor_seconds is None


def test_the_downtime_of_several_is_from_the_first_to_the_last() -> None:
    noted = replace(built(Way.KEXEC, [10] * 8), begins=(21, 31), ends=(91, 81))
    assert noted.downtime_seconds == pytest.approx(70 / HERTZ)
    assert noted.container_seconds == pytest.approx((70 / HERTZ, 50 / HERTZ))


def test_the_floor_is_from_the_jump_to_the_first_userspace() -> None:
    noted = built(Way.KEXEC, [10] * 8)
    assert noted.floor_seconds == pytest.approx((noted.userspace - noted.jump) / HERTZ)  # type: ignore[operator]


def test_marks_are_found_between_other_lines() -> None:
    console = (
        "[   50.1] bench: before 1000\n"
        "[   51.2] bench: available 900\n"
        "[   51.3] something else: available 1\n"
        "[   52.0] bench: available 300\n"
        "[   52.1] bench: jump 53021381606\n"
        "[    0.0] Linux version\n"
    )
    assert measure.last_mark(console, "jump") == 53021381606
    assert measure.extra_bytes(console) == 700 * 1024
    assert measure.extra_bytes("bench: before 10\n") == 0
    assert measure.extra_bytes("no marks\n") is None


def test_a_mark_that_is_not_complete_yet_is_none() -> None:
    assert measure.last_mark("bench: jump 53021", "jump") == 53021
    assert measure.last_mark("bench: jump", "jump") is None


def test_a_guest_without_containers_has_a_floor_only() -> None:
    collected = {"containers": [], "kernel": 150, "userspace": 400, "hertz": 100.0, "state": {}}
    noted = measure.noted({"tsc": 5}, collected, "bench: jump 100\n")
    assert noted.downtime_seconds is None
    assert noted.floor_seconds == 3.0
    assert noted.phases(Way.FLOOR) == ()
