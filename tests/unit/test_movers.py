# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.movers``."""

import pytest
from builders.host import Machine

from upgrade import movers

SWAPPINESS, KSM, DAMON = (
    "/proc/sys/vm/swappiness",
    "/sys/kernel/mm/ksm/run",
    "/sys/module/damon_reclaim/parameters/enabled",
)


def test_only_what_moves_is_stopped_and_comes_back(machine: Machine) -> None:
    machine.file(SWAPPINESS, "60")
    machine.file(KSM, "0")
    machine.file(DAMON, "Y")
    before = movers.read(machine.host)
    assert before == {SWAPPINESS: "60", DAMON: "Y"}
    movers.quiet(machine.host, before)
    assert movers.read(machine.host) == {}
    movers.restore(machine.host, before)
    assert movers.read(machine.host) == before
    assert machine.written(KSM) == []


def test_a_knob_that_is_gone_keeps_no_other_from_coming_back(machine: Machine) -> None:
    machine.file(SWAPPINESS, "60")
    damon = machine.file(DAMON, "Y")
    before = movers.read(machine.host)
    movers.quiet(machine.host, before)
    damon.unlink()
    with pytest.raises(FileNotFoundError):
        movers.restore(machine.host, dict(sorted(before.items(), reverse=True)))
    assert machine.host.read(SWAPPINESS) == "60"
    machine.file(DAMON, "Y")


def test_of_several_words_the_chosen_one_comes_back(machine: Machine) -> None:
    knob = "/sys/kernel/mm/transparent_hugepage/defrag"
    machine.file(knob, "always defer defer+madvise [madvise] never\n")
    before = movers.read(machine.host)
    assert before == {knob: "madvise"}
    movers.quiet(machine.host, before)
    assert machine.host.read(knob) == "never"
    movers.restore(machine.host, before)
    assert machine.host.read(knob) == "madvise"


def test_a_choice_at_rest_is_left_alone(machine: Machine) -> None:
    machine.file("/sys/kernel/mm/transparent_hugepage/defrag", "always defer madvise [never]\n")
    assert movers.read(machine.host) == {}
