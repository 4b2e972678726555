# SPDX-License-Identifier: MIT
"""Medians, spreads and slopes of benchmarks."""

import pytest
from builders import benchmarks
from hypothesis import given
from hypothesis import strategies as st

from upgrade.bench import statistics
from upgrade.bench.model import Cell, Row
from upgrade.report.model import Phase

SECONDS = st.floats(0.001, 1e4)


@given(st.lists(SECONDS, min_size=1), st.integers(0, 3))
def test_a_spread_holds_every_value(values: list[float], missing: int) -> None:
    found = statistics.spread([*[None] * missing, *values])
    assert found is not None
    assert found.low <= found.median <= found.high
    assert all(found.low <= value <= found.high for value in values)
    assert found.count == len(values)


def test_nothing_has_no_spread() -> None:
    assert statistics.spread([None, None]) is None


@given(st.floats(0, 100), st.floats(0, 10), st.sets(st.integers(64, 1 << 17), min_size=2, max_size=6))
def test_a_slope_finds_the_line(base: float, more: float, sizes: set[int]) -> None:
    rows = [Row(mib, 1, [Cell("copy", 1, downtime_seconds=base + more * mib / 1024)]) for mib in sizes]
    found = statistics.slope(rows, "copy")
    assert found is not None
    assert found.seconds == pytest.approx(base, abs=0.01 * (1 + base))
    assert found.seconds_per_gib == pytest.approx(more, rel=1e-3, abs=1e-3)


def test_one_size_has_no_slope() -> None:
    rows = [Row(64, 1, [Cell("copy", n, downtime_seconds=n) for n in (1, 2)])]
    assert statistics.slope(rows, "copy") is None


def test_work_is_what_the_boot_does_not_take() -> None:
    boot = [Phase(name, seconds) for name, seconds in zip(statistics.BOOT, (2.0, 4.0, 8.0), strict=True)]
    phases = (Phase("dump", 0.5), *boot, Phase("restore", 1.5))
    kept = Cell("copy", 1, downtime_seconds=16.0, phases=phases)
    started = Cell("kexec", 1, downtime_seconds=20.0, phases=(Phase("stop", 1.0), *boot[:2]))
    row = Row(64, 1, [kept, started, Cell("copy", 2, "broken", downtime_seconds=1.0, phases=phases)])
    found = statistics.work(row, "copy")
    assert found is not None
    assert (found.median, found.count) == (2.0, 1)
    assert statistics.work(row, "kexec") is None


def test_failed_cells_do_not_count() -> None:
    row = Row(64, 1, [Cell("copy", 1, downtime_seconds=3.0), Cell("copy", 2, "broken", downtime_seconds=0.1)])
    found = statistics.downtime(row, "copy")
    assert found is not None
    assert (found.median, found.count) == (3.0, 1)


def test_outside_is_what_is_left_without_a_counter() -> None:
    row = Row(64, 1, [Cell("reboot", 1, outside_seconds=20.0)])
    found = statistics.downtime(row, "reboot")
    assert found is not None
    assert found.median == 20.0


def test_the_floor_is_that_of_all_bare_kexecs() -> None:
    found = statistics.floor(benchmarks.result(rounds=3).rows)
    assert found is not None
    assert found.median == pytest.approx(benchmarks.FLOOR_SECONDS + 0.02)
    assert found.count == 3 * 8


def test_medians_of_phases_keep_their_order() -> None:
    row = benchmarks.result().rows[0]
    phases = statistics.phases(row, "copy")
    assert [phase.name for phase in phases] == [phase.name for phase in row.of("copy")[0].phases]
    assert phases[0] == row.of("copy")[1].phases[0]
