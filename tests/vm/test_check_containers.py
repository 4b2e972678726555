# SPDX-License-Identifier: MIT
"""Every limit of CRIU in a real task: `check` finds it before the freeze, and CRIU itself agrees.

Each program in ``undumpable`` makes something that CRIU refuses, each in ``dumpable`` something near to it that CRIU
takes, each in ``unrestorable`` something that CRIU dumps, but cannot restore. All run in cgroups of their own; `check`
looks at all of them at once, and CRIU dumps one after the other.
"""

import ast
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm.conftest import Guest, Guests
from upgrade.errors import ExitStatus

HERE = Path(__file__).parent
THERE = "/root/conditions"
UNDUMPABLE = sorted((HERE / "undumpable").glob("*.py"))
UNRESTORABLE = sorted((HERE / "unrestorable").glob("*.py"))
DUMPABLE = sorted((HERE / "dumpable").glob("*.py"))
BOTH = ("--cgroup", "/workload/redis", "--container", "memory")
START = f"python3 {THERE}/launch.py {THERE}/*able/*.py"
STATES = "cd /run/conditions; grep -s . $(ls | grep -v pid$)"
# The options of upgrade/dump/dumper.py and upgrade/engines/cgroup.py, but the tasks run on. As there, pages go nowhere,
# except for those that are to be restored.
DUMP = r"""
name=$1 images=/run/dump/$1 status=0
mkdir $images
case $name in unrestorable-*) ;; *)
    for number in $(seq 8); do ln -s /dev/null $images/pages-$number.img; done
esac
timeout 60 criu dump -t $(cat /run/conditions/$name.pid) -D $images -o log -v2 --leave-running \
    --tcp-established --ext-unix-sk --file-locks --link-remap --ghost-limit 64M --manage-cgroups=soft \
    --freeze-cgroup /sys/fs/cgroup/workload/$name --network-lock skip >/dev/null 2>&1 || status=$?
echo "$name|$status|$(grep -h 'Error (' $images/log | head -n 2 | sed 's/^[^E]*//' | tr '\n|' '; ')"
echo 0 > /sys/fs/cgroup/workload/$name/cgroup.freeze
case $name in unrestorable-*)
    echo 1 > /sys/fs/cgroup/workload/$name/cgroup.kill
    while test -s /sys/fs/cgroup/workload/$name/cgroup.procs; do sleep 0.1; done
    timeout 60 criu restore -D $images -o restore --restore-detached --ext-unix-sk --file-locks \
        --manage-cgroups=soft >/dev/null 2>&1 && echo "$name-restored|0|"
esac
rm -rf $images
"""
DUMP_ALL = f"mkdir -p /run/dump; mount -t tmpfs dump /run/dump; xargs -P 2 -n 1 sh {THERE}/dump </run/names"


@dataclass(frozen=True)
class Verdicts:
    """What everybody says, by the name of the condition."""

    states: Mapping[str, str]
    failed: Mapping[str, frozenset[str]]
    """The checks that failed."""
    refusals: Mapping[str, str]
    """Why CRIU refuses, or nothing."""


def name_of(program: Path) -> str:
    """Return the name of a condition."""
    return f"{program.parent.name}-{program.stem}"


def expected(program: Path) -> str:
    """Return the id of the check that has to find it."""
    for node in ast.parse(program.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHECK":
            return str(ast.literal_eval(node.value))
    raise AssertionError(f"{program} names no check")


def packed() -> bytes:
    """Return all programs as an archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in (HERE / "condition.py", HERE / "launch.py", *UNDUMPABLE, *UNRESTORABLE, *DUMPABLE):
            tar.add(file, str(file.relative_to(HERE)))
    return archive.getvalue()


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a guest with Redis and a runc container."""
    yield from guests.boot(["redis", "runc-memory"], store_mib=256)


@pytest.fixture(scope="module")
def verdicts(guest: Guest) -> Verdicts:
    """Return what `check` and CRIU say of everything."""
    guest.machine.put("/root/conditions.tar", packed())
    guest.shell(
        f"mkdir {THERE}; tar -xf /root/conditions.tar -C {THERE}; modprobe -a udp_diag raw_diag packet_diag || true"
    )
    guest.shell(START)
    states = dict(line.split(":", 1) for line in guest.shell(STATES).splitlines())
    names = [name for name, state in states.items() if state == "ready"]
    cgroups = [word for name in names for word in ("--cgroup", f"/workload/{name}")]
    answer = guest.command("check", "--json", "--only", "containers", *cgroups)
    failed: dict[str, set[str]] = {}
    for result in answer.json["results"]:
        if result["status"] == "fail":
            failed.setdefault(result["subject"].removeprefix("/workload/"), set()).add(result["id"])
            print(result["subject"], result["id"], result["seen"])
        elif result["status"] == "skip":
            print(result)
    refusals = {}
    guest.machine.put(f"{THERE}/dump", DUMP.encode())
    guest.machine.put("/run/names", "\n".join(names).encode())
    for line in guest.shell(DUMP_ALL).splitlines():
        name, status, reason = line.split("|", 2)
        refusals[name] = "" if status == "0" else reason or f"status {status}"
        print(f"{name}: {refusals[name] or 'dumped'}")
    return Verdicts(states, {name: frozenset(ids) for name, ids in failed.items()}, refusals)


def test_healthy(guest: Guest) -> None:
    answer = guest.command("check", "--json", "--kernel", guest.target, *BOTH)
    durations = answer.json["durations_ns"]
    slow = sorted(durations, key=lambda name: -durations[name])[:12]
    print(
        f"{sum(durations.values()) / 1e9:.1f} s for {len(durations)} checks:",
        ", ".join(f"{name} {durations[name] / 1e9:.1f}" for name in slow),
    )
    assert answer.status == ExitStatus.DONE, answer
    found = [result for result in answer.json["results"] if result["id"].startswith("containers.")]
    assert {result["status"] for result in found} == {"pass"}, answer.out


def test_probe(guest: Guest) -> None:
    """Both are dumped for real and run on: the same processes, the same connection, and nothing of it is left."""
    guest.machine.put("/root/increments.py", (HERE / "increments.py").read_bytes())
    before = guest.traces()
    guest.shell("setsid --fork python3 /root/increments.py /run/probe </dev/null >/dev/null 2>/run/probe.err")
    guest.wait("test -e /run/probe/runs")
    answer = guest.command(
        "check",
        "--json",
        "--probe",
        "--only",
        "containers",
        "--cgroup",
        "/workload/redis",
        "--container",
        "memory",
    )
    assert answer.status == ExitStatus.DONE, answer
    found = [each for each in answer.json["results"] if each["id"] == "containers.probe"]
    assert [each["subject"] for each in found] == ["/workload/redis", "memory"]
    for each in found:
        print(each["subject"], each["seen"])
        assert 0 < each["figures"]["freeze_ns"] < 60e9
    guest.shell("touch /run/probe/end")
    guest.wait("test -s /run/probe/longest || test -s /run/probe.err")
    assert guest.shell("cat /run/probe.err") == ""
    print("longest pause of a client:", guest.shell("cat /run/probe/longest"), "s")
    assert guest.traces() == before
    assert guest.verify("redis", "runc-memory") == {}


@pytest.mark.parametrize("program", UNDUMPABLE, ids=name_of)
def test_undumpable(verdicts: Verdicts, program: Path) -> None:
    name = name_of(program)
    if verdicts.states.get(name) != "ready":
        pytest.skip(f"cannot be made on this kernel: {verdicts.states.get(name, 'nothing was said')}")
    assert verdicts.refusals[name], "CRIU dumps it, so the check would be a false refusal"
    assert expected(program) in verdicts.failed.get(name, frozenset()), f"missed: {verdicts.refusals[name]}"


@pytest.mark.parametrize("program", UNRESTORABLE, ids=name_of)
def test_unrestorable(verdicts: Verdicts, program: Path) -> None:
    name = name_of(program)
    assert verdicts.refusals[name] == "", "CRIU refuses to dump it: it belongs to the undumpable"
    assert f"{name}-restored" not in verdicts.refusals, (
        "CRIU restores it, so the check would be a false refusal"
    )
    assert expected(program) in verdicts.failed.get(name, frozenset())


@pytest.mark.parametrize("program", DUMPABLE, ids=name_of)
def test_dumpable(verdicts: Verdicts, program: Path) -> None:
    name = name_of(program)
    if verdicts.states.get(name) != "ready":
        pytest.skip(f"cannot be made on this kernel: {verdicts.states.get(name, 'nothing was said')}")
    agreed = bool(verdicts.refusals[name]) == bool(verdicts.failed.get(name))
    assert agreed, (verdicts.refusals[name], verdicts.failed.get(name))


def test_how_many_were_missed(verdicts: Verdicts) -> None:
    """Print the figures: of what CRIU refused, how much `check` did not see, and what it refused for no reason."""
    refused = {name for name, reason in verdicts.refusals.items() if reason}
    missed = sorted(name for name in refused if not verdicts.failed.get(name))
    false = sorted(
        name for name in verdicts.failed if not verdicts.refusals.get(name) and "unrestorable" not in name
    )
    print(
        f"{len(verdicts.refusals)} conditions, {len(refused)} refused by CRIU, {len(refused) - len(missed)} of these "
        f"found by check before, {len(missed)} missed {missed}, {len(false)} refused by check alone {false}"
    )
    assert (missed, false) == ([], [])


def test_most_conditions_were_there(verdicts: Verdicts) -> None:
    ready = [program for program in UNDUMPABLE if verdicts.states.get(name_of(program)) == "ready"]
    assert len(ready) >= 0.8 * len(UNDUMPABLE), verdicts.states


def test_probe_of_what_criu_refuses(guest: Guest, verdicts: Verdicts) -> None:
    """Another check has named it, so that it is not frozen; where that is left out CRIU says it, and it runs on."""
    words = ("--json", "--probe", "--cgroup", "/workload/undumpable-io_uring")
    tried = guest.command("check", *words, "--only", "containers")
    assert tried.status == ExitStatus.REFUSED
    assert [e["status"] for e in tried.json["results"] if e["id"] == "containers.probe"] == ["skip"]
    refused = guest.command("check", *words, "--only", "containers.probe")
    assert refused.status == ExitStatus.REFUSED
    assert "CRIU cannot dump it" in refused.error["message"]
    pid = guest.shell("cat /run/conditions/undumpable-io_uring.pid").strip()
    assert guest.shell(f"cut -d' ' -f3 /proc/{pid}/stat").strip() in ("S", "R")
    assert guest.shell("cat /sys/fs/cgroup/workload/undumpable-io_uring/cgroup.freeze").strip() == "0"


def test_run_refuses_what_check_refuses(guest: Guest, verdicts: Verdicts) -> None:
    before = guest.traces()
    answer = guest.upgrade(*BOTH, "--cgroup", "/workload/undumpable-io_uring")
    assert answer.status == ExitStatus.REFUSED, answer
    assert answer.error["subject"] == "/workload/undumpable-io_uring"
    assert "io_uring" in answer.error["message"]
    assert guest.traces() == before
