# SPDX-License-Identifier: MIT
"""Memory that comes on demand, from a page server that is killed while the containers already run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.vm.conftest import REPOSITORY, Guest, Guests

CONTAINERS = ("--cgroup", "/workload/redis", "--container", "memory")
SCHEMA = json.loads((REPOSITORY / "upgrade/report/schema.json").read_text())
KILLER = Path(__file__).with_name("killer.py")
ORPHANED = Path(__file__).with_name("orphaned.py")
KILLS = 3
DEATHS = 6
PAGES = "/run/seamless-upgrade/pages-progress.json"

# Starts with the restore, not when the boot is over: by then all memory has come.
UNIT = f"""[Unit]
DefaultDependencies=no
ConditionKernelCommandLine=seamless_upgrade.session
[Service]
Type=exec
ExecStart=/usr/bin/python3 /opt/killer.py {KILLS}
[Install]
WantedBy=sysinit.target
"""


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a guest with 300 MiB in Redis that has been upgraded; its page server was killed in between."""
    more = {"REDIS_KEYS": "250000", "REDIS_VALUE_BYTES": "1024"}
    for guest in guests.boot(["redis", "runc-memory"], store_mib=128, frames_mib=1024, environment=more):
        guest.machine.put("/opt/killer.py", KILLER.read_bytes())
        guest.machine.put("/etc/systemd/system/killer.service", UNIT.encode())
        guest.shell("systemctl enable killer.service; sync")
        guest.jump(guest.kernels[1].release, "--restore", "lazy", *CONTAINERS)
        guest.command("status", "--wait")
        guest.wait("! systemctl is-active -q seamless-upgrade-pages.service")
        guest.wait("test $(systemctl show -P SubState seamless-upgrade-restore.service) = exited")
        yield guest


@pytest.fixture(scope="module")
def report(guest: Guest) -> dict[str, Any]:
    """Return the report of the upgrade."""
    return guest.command("report", "--json").json


def test_the_server_was_killed_while_it_served(guest: Guest) -> None:
    kills = json.loads(guest.shell("cat /run/kills.json"))
    assert len(kills) == KILLS
    assert all(0 < kill["done"] < kill["total"] for kill in kills)
    assert all(kill["stored"] > 0 for kill in kills)
    journal = guest.shell("journalctl -b -u seamless-upgrade-pages.service --no-pager")
    assert journal.count("code=killed") == KILLS
    assert "Got notification message" not in journal  # from a process that systemd does not listen to


def test_every_page_is_what_it_was(guest: Guest, report: dict[str, Any]) -> None:
    assert guest.verify("redis", "runc-memory") == {}
    assert [told["error"] for told in json.loads(guest.shell(f"cat {PAGES}"))["containers"]] == [None, None]


def test_the_report_says_when_the_memory_was_complete(report: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    assert (report["outcome"], report["restore_mode"]) == ("upgraded", "lazy"), report["reason"]
    for container in report["containers"]:
        assert container["in_place"]
        assert container["memory_complete_seconds"] > 0
    assert report["taint_after"] == report["taint_before"]  # the kernel has seen nothing to warn of


def test_nothing_is_left(guest: Guest) -> None:
    mounts = guest.shell("awk '{print $2}' /proc/mounts")
    assert "/run/seamless-upgrade" not in mounts
    assert guest.shell("ls -d /run/seamless-upgrade/pages.json 2>/dev/null || true") == ""
    assert guest.shell("systemctl is-failed seamless-upgrade-pages.service || true").strip() == "inactive"
    assert "online" in guest.shell("grep -h . /sys/devices/system/memory/memory*/state | sort -u")
    ours = "find /sys/fs/cgroup/system.slice -path '*/seamless-upgrade-*' -name cgroup.procs -exec cat {} +"
    assert guest.shell(ours) == ""  # the containers' tasks are in none of our units


def test_systemd_starts_no_server_before_the_keeper_has_handed_over(guest: Guest) -> None:
    """And it keeps each descriptor once."""
    guest.machine.put("/opt/orphaned.py", ORPHANED.read_bytes())
    guest.shell(
        f"sed -e 's|^ExecStart=.*|ExecStart=/usr/bin/python3 /opt/orphaned.py {DEATHS}|' -e /^Condition/d"
        " /usr/local/lib/systemd/system/seamless-upgrade-pages.service >/run/systemd/system/orphaned.service;"
        " systemctl daemon-reload; systemctl start orphaned.service"
    )
    guest.wait(f"test $(grep -o names /run/orphaned.json | wc -l) = {DEATHS}")
    starts = json.loads(guest.shell("cat /run/orphaned.json"))
    assert len(starts) == DEATHS
    for start in starts:
        orphan, task = start["names"]
        assert (orphan.split(".")[0], int(orphan.split(".")[2]), task) == ("orphan", start["fd"], "task")
