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

HERE = Path(__file__).parent
THERE = "/root/conditions"
UNDUMPABLE = sorted((HERE / "undumpable").glob("*.py"))
UNRESTORABLE = sorted((HERE / "unrestorable").glob("*.py"))
DUMPABLE = sorted((HERE / "dumpable").glob("*.py"))
# One after the other, as a slow machine would else need all of its memory for interpreters that start
START = f"""
mkdir -p /sys/fs/cgroup/workload
for program in {THERE}/*able/*.py; do
    name=$(basename $(dirname $program))-$(basename $program .py)
    cgroup=/sys/fs/cgroup/workload/$name
    mkdir -p $cgroup
    sh -c 'echo $$ > "$1/cgroup.procs"; cd /; PYTHONPATH={THERE} exec setsid --fork python3 "$2" </dev/null >/dev/null \
        2>"/run/$3.err"' sh $cgroup $program $name
    for i in $(seq 300); do test -s /run/conditions/$name && break; sleep 0.05; done
done
"""
STATES = 'cd /run/conditions; for f in *; do echo "$f: $(cat $f)"; done'
# The options of upgrade/dump/dumper.py and upgrade/engines/cgroup.py, but the tasks run on
DUMP = """
mkdir -p /run/dump
mount -t tmpfs dump /run/dump
for name in {names}; do
    mkdir /run/dump/$name
    status=0
    timeout 60 criu dump -t $(cat /run/conditions/$name.pid) -D /run/dump/$name -o log -v2 --leave-running \
        --tcp-established --ext-unix-sk --file-locks --link-remap --ghost-limit 64M --manage-cgroups=soft \
        --freeze-cgroup /sys/fs/cgroup/workload/$name --network-lock skip >/dev/null 2>&1 || status=$?
    echo "$name|$status|$(grep -h 'Error (' /run/dump/$name/log | head -n 2 | sed 's/^[^E]*//' | tr '\\n|' '; ')"
    echo 0 > /sys/fs/cgroup/workload/$name/cgroup.freeze
    case $name in unrestorable-*)
        echo 1 > /sys/fs/cgroup/workload/$name/cgroup.kill
        while test -s /sys/fs/cgroup/workload/$name/cgroup.procs; do sleep 0.1; done
        timeout 60 criu restore -D /run/dump/$name -o restore --restore-detached --ext-unix-sk --file-locks \
            --manage-cgroups=soft >/dev/null 2>&1 && echo "$name-restored|0|"
    esac
    rm -rf /run/dump/$name
done
"""


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
        for file in (HERE / "condition.py", *UNDUMPABLE, *UNRESTORABLE, *DUMPABLE):
            tar.add(file, str(file.relative_to(HERE)))
    return archive.getvalue()


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a guest with Redis and a runc container."""
    yield from guests.boot(["redis", "runc-memory"])


@pytest.fixture(scope="module")
def verdicts(guest: Guest) -> Verdicts:
    """Return what `check` and CRIU say of everything."""
    guest.machine.put("/root/conditions.tar", packed())
    guest.shell(
        f"mkdir {THERE}; tar -xf /root/conditions.tar -C {THERE}; modprobe -a udp_diag raw_diag packet_diag || true"
    )
    guest.shell(START)
    states = dict(line.split(": ", 1) for line in guest.shell(STATES).splitlines() if ": " in line)
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
    for line in guest.shell(DUMP.format(names=" ".join(names))).splitlines():
        name, status, reason = line.split("|", 2)
        refusals[name] = "" if status == "0" else reason or f"status {status}"
        print(f"{name}: {refusals[name] or 'dumped'}")
    return Verdicts(states, {name: frozenset(ids) for name, ids in failed.items()}, refusals)


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


def test_most_conditions_were_there(verdicts: Verdicts) -> None:
    ready = [program for program in UNDUMPABLE if verdicts.states.get(name_of(program)) == "ready"]
    assert len(ready) >= 0.8 * len(UNDUMPABLE), verdicts.states


def test_healthy(guest: Guest) -> None:
    answer = guest.command(
        "check", "--json", "--only", "containers", "--cgroup", "/workload/redis", "--container", "memory"
    )
    assert {result["status"] for result in answer.json["results"]} == {"pass"}, answer.out
