# SPDX-License-Identifier: MIT
"""The restore process itself is killed: another one goes on, and nothing is restored twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.vm.conftest import REPOSITORY, Answer, Guest, Guests
from upgrade.errors import ExitStatus

ASSASSIN = Path(__file__).with_name("assassin.py")
CONTAINERS = ("--cgroup", "/workload/redis", "--container", "memory")
LEDGER = "/run/seamless-upgrade/restored.jsonl"
RESTORE = "seamless-upgrade-restore.service"
SCHEMA = json.loads((REPOSITORY / "upgrade/report/schema.json").read_text())
UNIT = """[Unit]
DefaultDependencies=no
ConditionKernelCommandLine=seamless_upgrade.session
[Service]
Type=exec
ExecStart=/usr/bin/python3 /opt/assassin.py
[Install]
WantedBy=sysinit.target
"""


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a guest with 300 MiB in Redis, in which something waits for the restore."""
    more = {"REDIS_KEYS": "250000", "REDIS_VALUE_BYTES": "1024"}
    for guest in guests.boot(["redis", "runc-memory"], store_mib=128, frames_mib=1024, environment=more):
        guest.machine.put("/opt/assassin.py", ASSASSIN.read_bytes())
        guest.machine.put("/etc/systemd/system/assassin.service", UNIT.encode())
        guest.shell("systemctl enable assassin.service")
        yield guest


def upgrade(guest: Guest, to: int, moment: str, *words: str) -> tuple[Answer, dict[str, Any], dict[str, Any]]:
    """Upgrade; return what ``status`` says then, the report, and what the assassin saw."""
    guest.machine.put("/etc/assassin", moment.encode())
    guest.shell("sync")
    guest.jump(guest.kernels[to].release, *words, *CONTAINERS)
    status = guest.command("status", "--wait")
    guest.wait(f"test $(systemctl show -P SubState {RESTORE}) = exited")
    report = guest.command("report", "--json").json
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    return status, report, json.loads(guest.shell("cat /run/assassin.json"))


def nothing_is_left(guest: Guest) -> None:
    """See that what the dead process held was given back by the other one."""
    assert guest.traces()["rules"] == ""
    assert "/run/seamless-upgrade" not in guest.shell("awk '{print $2}' /proc/mounts")
    frames = guest.command("status", "--json").json["frames"]
    assert [span["online_bytes"] >> 20 for span in frames] == [1024]
    assert (
        guest.shell("ls /run/seamless-upgrade/pages.json /var/lib/seamless-upgrade/plan.json || true") == ""
    )
    ours = "find /sys/fs/cgroup/system.slice -path '*/seamless-upgrade-*' -name cgroup.procs -exec cat {} +"
    assert guest.shell(ours) == ""
    events = [json.loads(line)["event"] for line in guest.shell(f"cat {LEDGER}").splitlines()]
    assert (events.count("start"), events.count("report"), events[-1]) == (2, 1, "finish")


def test_killed_in_the_middle_of_a_restore(guest: Guest) -> None:
    status, report, killed = upgrade(guest, 1, "begin")
    assert killed["tasks"], "it was not in the middle"
    assert status.status == ExitStatus.DEGRADED, status
    assert report["outcome"] == "degraded"
    assert "the restore process died while it restored" in report["reason"]
    assert "/workload/redis" in report["reason"]
    redis, memory = report["containers"]
    assert (redis["outcome"], redis["reason"]) == ("restored", None)  # its tasks had not run: once more
    assert memory["outcome"] == "restored"
    assert guest.verify("redis", "runc-memory") == {}
    nothing_is_left(guest)
    # the boot has waited for the second process, as for the first
    order = "systemctl show -P ActiveEnterTimestampMonotonic"
    ready, boot = (int(guest.shell(f"{order} {unit}")) for unit in (RESTORE, "sysinit.target"))
    assert ready <= boot


def test_killed_while_memory_still_comes(guest: Guest) -> None:
    """All containers run by then: it is no degraded upgrade, and what is held is given back all the same."""
    status, report, killed = upgrade(guest, 0, "report", "--restore", "lazy")
    assert killed["pid"] > 0
    assert status.status == ExitStatus.DONE, status
    assert (report["outcome"], report["restore_mode"]) == ("upgraded", "lazy"), report["reason"]
    assert [w for w in report["warnings"] if "the restore process died when all containers ran already" in w]
    assert all(container["memory_complete_seconds"] > 0 for container in report["containers"])
    assert guest.verify("redis", "runc-memory") == {}
    nothing_is_left(guest)
