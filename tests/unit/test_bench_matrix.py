# SPDX-License-Identifier: MIT
"""Which cells a benchmark has."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrade.bench import matrix
from upgrade.bench.matrix import BY_NAME, DEFAULT_MODES, Matrix
from upgrade.errors import UsageError
from upgrade.rehearse.layout import LOW_MIB, Layout

MODES = st.lists(st.sampled_from(sorted(BY_NAME)), min_size=1, unique=True)


@given(MODES, st.integers(1, 5))
def test_every_round_has_every_mode_once(modes: list[str], rounds: int) -> None:
    cells = list(Matrix(modes=tuple(modes), rounds=rounds).cells())
    for number in range(1, rounds + 1):
        found = [mode.name for each, mode in cells if each == number]
        assert set(modes) <= set(found)
        assert max(Counter(found).values()) == 1
    assert [number for number, _ in cells] == sorted(number for number, _ in cells)


def test_rounds_begin_with_different_modes() -> None:
    cells = list(Matrix(modes=("copy", "kexec"), rounds=2).cells())
    assert [mode.name for _, mode in cells] == ["copy", "kexec", "kexec", "copy"]


@given(MODES)
def test_there_is_always_a_floor(modes: list[str]) -> None:
    assert set(Matrix(modes=tuple(modes)).with_floor()) & {"kexec", "floor"}


def test_the_floor_needs_no_cells_beside_a_plain_kexec() -> None:
    assert Matrix().with_floor() == DEFAULT_MODES
    assert Matrix(modes=("copy",)).with_floor() == ("copy", "floor")


def test_rows_begin_with_the_smallest() -> None:
    rows = Matrix(memory_mib=(1024, 64), containers=(4, 1)).rows()
    assert rows == [(64, 1), (64, 4), (1024, 1), (1024, 4)]


def test_what_the_host_does_not_hold_is_left_out_and_named() -> None:
    all_rows = Matrix(memory_mib=(64, 4096), containers=(1,))
    small = Matrix(memory_mib=(64, 4096), containers=(1,), most_mib=all_rows.machine(64, 1).total_mib)
    assert small.rows() == [(64, 1)]
    assert small.left_out() == [(4096, 1)]
    assert all_rows.left_out() == []


@given(st.integers(1, 8192), st.integers(1, 16), MODES)
def test_a_machine_holds_its_containers_twice_and_their_images(
    mib: int, count: int, modes: list[str]
) -> None:
    sizes = Matrix(modes=tuple(modes)).machine(mib, count)
    held = mib * count
    assert sizes.ordinary_mib >= LOW_MIB + 2 * held
    assert sizes.store_mib > held
    assert (sizes.frames_mib > held) is any(BY_NAME[name].in_place for name in modes)
    # What lies above 4 GiB must be there to its end.
    layout = Layout(sizes.ordinary_mib, sizes.store_mib, sizes.frames_mib)
    last = layout.ranges[-1]
    assert layout.total_mib - layout.low_mib >= last.start_mib + last.size_mib - 4096


@pytest.mark.parametrize(
    ("wrong", "subject"),
    [
        ({"rounds": 0}, "--rounds"),
        ({"memory_mib": (0,)}, "--memory"),
        ({"containers": ()}, "--containers"),
        ({"modes": ("teleport",)}, "--modes"),
        ({"modes": ()}, "--modes"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, tuple[int, ...]], subject: str) -> None:
    with pytest.raises(UsageError) as refused:
        Matrix(**wrong)  # type: ignore[arg-type]
    assert refused.value.subject == subject


def test_quick_is_one_row_once() -> None:
    assert len(matrix.quick().rows()) == 1
    assert len(list(matrix.quick().cells())) == len(DEFAULT_MODES)
