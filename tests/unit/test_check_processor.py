# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.check.processor``: processor.microcode, processor.features, processor.count and
processor.hotplug."""

import pytest
from builders.checks import findings, only, situation
from builders.host import Machine
from hypothesis import given
from hypothesis import strategies as st

from upgrade.check.features import features
from upgrade.check.model import Finding, Status
from upgrade.check.processor import _numbers, count, hotplug, microcode
from upgrade.check.situation import Situation

PASS, WARN, FAIL, SKIP = Status.PASS, Status.WARN, Status.FAIL, Status.SKIP
CPU = "/sys/devices/system/cpu"
FLAGS = "fpu xsave xsaves avx avx2 avx512f avx512vl amx_tile amx_int8 pku ospke rdseed user_shstk smep fsgsbase rtm"


def processors(machine: Machine, online: str, *, present: str = "", smt: str = "on") -> None:
    """Have processors; those of a core have numbers that follow each other."""
    machine.file(f"{CPU}/online", online)
    machine.file(f"{CPU}/present", present or online)
    machine.file(f"{CPU}/smt/control", smt)
    for number in _numbers(online):
        first = number - number % 2
        machine.file(f"{CPU}/cpu{number}/topology/thread_siblings_list", f"{first}-{first + 1}")


def flags(machine: Machine, text: str = FLAGS) -> None:
    machine.file("/proc/cpuinfo", f"processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: {text}\nbugs\t\t:")


def appending(machine: Machine, append: str, *cgroups: str) -> Situation:
    return situation(machine.host, append=append, cgroups=cgroups)


def container(machine: Machine, *, status: str = "", cpus: str = "") -> str:
    """Have a container of one task, and return its cgroup."""
    machine.cgroup("/web", [77])
    machine.file("/sys/fs/cgroup/web/cpuset.cpus", cpus)
    machine.process(77, status=status)
    return "/web"


# --- processor.microcode -------------------------------------------------------------------------------------------


def test_no_microcode_is_shown(machine: Machine) -> None:
    processors(machine, "0-1")
    assert only(microcode, situation(machine.host), PASS).seen.startswith("not to be seen")


@pytest.mark.parametrize(("tainted", "late"), [("0", False), ("512", False), ("4", True), ("516", True)])
def test_the_same_microcode_everywhere(machine: Machine, tainted: str, late: bool) -> None:
    for number in range(4):
        machine.file(f"{CPU}/cpu{number}/microcode/version", "0xf4")
    machine.file(f"{CPU}/cpufreq/microcode/version", "0x1")
    machine.file("/proc/sys/kernel/tainted", tainted)
    found = only(microcode, situation(machine.host), PASS)
    assert found.seen.startswith("0xf4 on all processors; kexec keeps it")
    assert ("if it was loaded late" in found.seen) is late


def test_different_microcode(machine: Machine) -> None:
    for number, version in enumerate(("0xf4", "0xf0", "0xf4")):
        machine.file(f"{CPU}/cpu{number}/microcode/version", version)
    found = only(microcode, situation(machine.host), WARN)
    assert (found.subject, found.seen) == ("microcode", "differs between processors: 0xf0, 0xf4")


# --- processor.features --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "append", ["", "quiet mitigations=off nosmt", "clearcpuid=smap", "clearcpuid=999", "noxsavex"]
)
def test_features_stay(machine: Machine, append: str) -> None:
    flags(machine)
    found = only(features, appending(machine, append), PASS)
    assert (found.subject, found.seen) == (
        "features",
        "xsave, avx, avx512f, amx_tile, pku, user_shstk stay as they are",
    )


@pytest.mark.parametrize(
    ("append", "lost"),
    [
        ("noxsave", "avx, avx512f, xsave, amx_int8 and 7 more"),
        ("clearcpuid=avx", "avx, avx512f, avx2, avx512vl"),
        ("clearcpuid=156", "avx, avx512f, avx2, avx512vl"),
        ("clearcpuid=smap,AVX512F", "avx512f, avx512vl"),
        ("clearcpuid=304", "avx512f, avx512vl"),
    ],
)
def test_a_switch_takes_away_what_every_task_uses(machine: Machine, append: str, lost: str) -> None:
    flags(machine)
    found = only(features, appending(machine, append), FAIL)
    assert (found.subject, found.seen) == (append, f"takes {lost} away")
    assert f"leave {append} out of --append" in found.remedy


@pytest.mark.parametrize(
    ("append", "lost", "reason"),
    [
        ("nopku", "ospke, pku", "may be ended"),
        ("clearcpuid=pku", "ospke, pku", "may be ended"),
        ("clearcpuid=amx_tile", "amx_tile", "may be ended"),
        ("clearcpuid=xsaves", "amx_int8, amx_tile, user_shstk, xsaves", "may be ended"),
        ("clearcpuid=avx2", "avx2", "the instructions themselves stay"),
        ("clearcpuid=avx512vl", "avx512vl", "the instructions themselves stay"),
        ("clearcpuid=rdseed", "rdseed", "the instructions themselves stay"),
        ("nousershstk", "user_shstk", "the instructions themselves stay"),
        ("nofsgsbase", "fsgsbase", "may be ended"),
        ("tsx=off", "rtm", "the instructions themselves stay"),
    ],
)
def test_a_switch_takes_away_what_few_tasks_use(
    machine: Machine, append: str, lost: str, reason: str
) -> None:
    flags(machine)
    found = only(features, appending(machine, append), WARN)
    assert (found.subject, found.seen) == (append, f"takes {lost} away")
    assert reason in found.reason


def test_what_is_not_there_cannot_be_taken(machine: Machine) -> None:
    flags(machine, "fpu")
    found = only(features, appending(machine, "noxsave nopku clearcpuid=avx"), PASS)
    assert found.seen == "none of interest stay as they are"


def test_several_switches_are_told_apart(machine: Machine) -> None:
    flags(machine)
    found = findings(features, appending(machine, "quiet noxsave nopku"))
    assert [(each.status, each.subject) for each in found] == [(FAIL, "noxsave"), (WARN, "nopku")]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("x86_Thread_features:\tshstk wrss \nx86_Thread_features_locked:\tshstk", FAIL),
        ("x86_Thread_features:\t\nx86_Thread_features_locked:\tshstk", WARN),
        ("State:\tS (sleeping)", WARN),
    ],
)
def test_shadow_stacks_count_if_a_task_has_one(machine: Machine, status: str, expected: Status) -> None:
    flags(machine)
    found = only(features, appending(machine, "nousershstk", container(machine, status=status)), expected)
    assert ("which /web uses" in found.seen) is (expected is FAIL)


def test_no_flags(machine: Machine) -> None:
    machine.file("/proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 50.00")
    assert only(features, appending(machine, "noxsave"), SKIP).source == "/proc/cpuinfo"


# --- processor.count -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("append", ["", "maxcpus=8", "nr_cpus=16 quiet", "maxcpus=x"])
def test_all_processors_stay(machine: Machine, append: str) -> None:
    processors(machine, "0-7")
    assert only(count, appending(machine, append), PASS).seen == "8, all of them stay"


@pytest.mark.parametrize(
    ("append", "kept"),
    [
        ("maxcpus=2", 2),
        ("nr_cpus=4 maxcpus=6", 4),
        ("maxcpus=0", 1),
        ("nosmp", 1),
        ("nosmt", 4),
        ("nosmt=force", 4),
        ("mitigations=auto,nosmt", 4),
        ("nosmt maxcpus=4", 2),
    ],
)
def test_processors_go_away(machine: Machine, append: str, kept: int) -> None:
    processors(machine, "0-7")
    found = only(count, appending(machine, append), WARN)
    assert (found.subject, found.seen) == ("processors", f"{kept} of 8 stay")


def test_nosmt_takes_nothing_where_each_core_has_one_processor(machine: Machine) -> None:
    machine.file(f"{CPU}/online", "0-1")
    for number in range(2):
        machine.file(f"{CPU}/cpu{number}/topology/thread_siblings_list", str(number))
    only(count, appending(machine, "nosmt"), PASS)


def test_the_running_command_line_goes_on(machine: Machine) -> None:
    processors(machine, "0-7")
    machine.file("/proc/cmdline", "root=/dev/vda1 maxcpus=4")
    assert only(count, appending(machine, ""), WARN).seen == "4 of 8 stay"


@pytest.mark.parametrize(("cpus", "bound"), [("4-5", True), ("0,2", False), ("", False), ("1-2", True)])
def test_a_container_bound_to_one_that_goes(machine: Machine, cpus: str, bound: bool) -> None:
    processors(machine, "0-5")
    found = only(count, appending(machine, "nosmt nr_cpus=4", container(machine, cpus=cpus)), WARN)
    assert found.seen == "2 of 6 stay" + (", and /web is bound to others" if bound else "")


# --- processor.hotplug ---------------------------------------------------------------------------------------------


def told(machine: Machine, status: Status, append: str = "") -> Finding:
    return only(hotplug, appending(machine, append), status)


def test_none_is_offline(machine: Machine) -> None:
    processors(machine, "0-3")
    assert told(machine, PASS).seen == "none is offline"


def test_some_are_offline(machine: Machine) -> None:
    processors(machine, "0-1,4", present="0-4")
    found = told(machine, WARN)
    assert (found.subject, found.seen) == ("processors 2, 3", "are offline now")
    assert found.remedy == "take them offline afterwards: chcpu -d 2,3"


@pytest.mark.parametrize("control", ["off", "forceoff"])
def test_smt_was_switched_off(machine: Machine, control: str) -> None:
    processors(machine, "0,2", present="0-3", smt=control)
    found = told(machine, WARN)
    assert found.seen == "are offline now (SMT was switched off)"
    assert found.remedy == "--append nosmt"


@pytest.mark.parametrize("word", ["nosmt", "nosmt=force", "mitigations=auto,nosmt", "maxcpus=2"])
def test_the_command_line_keeps_them_offline(machine: Machine, word: str) -> None:
    processors(machine, "0,2", present="0-3", smt="forceoff")
    expected = f"2 are offline, and {word} keeps them so"
    assert told(machine, PASS, word).seen == expected
    machine.file("/proc/cmdline", f"root=/dev/vda1 {word}")
    assert told(machine, PASS).seen == expected


def ranges(numbers: list[int]) -> str:
    """Write numbers as the kernel does."""
    parts: list[list[int]] = []
    for each in sorted(numbers):
        if parts and each == parts[-1][-1] + 1:
            parts[-1].append(each)
        else:
            parts.append([each])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


@given(st.lists(st.integers(0, 300), unique=True))
def test_lists_of_processors(numbers: list[int]) -> None:
    assert _numbers(ranges(numbers)) == set(numbers)
