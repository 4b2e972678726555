# SPDX-License-Identifier: MIT
"""Memory that did not survive: found before a task runs, the container is started from cold, the report says why."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import Guest, Guests
from upgrade.errors import ExitStatus

HERE = Path(__file__).parent
BOTH = ("--cgroup", "/workload/redis", "--container", "memory")
UNIT = """[Unit]
DefaultDependencies=no
ConditionPathExists=/etc/damage
ConditionKernelCommandLine=seamless_upgrade.session
After=systemd-remount-fs.service
Before=seamless-upgrade-restore.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/root/damage.sh
[Install]
WantedBy=sysinit.target
"""
CONFIG = """[cold_start]
"/workload/redis" = ["redis-server", "--port", "6379", "--save", ""]
"""


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a guest in which something writes into the range between the kernels."""
    for guest in guests.boot(["redis", "runc-memory"]):
        guest.machine.put("/root/damage.sh", (HERE / "damage.sh").read_bytes(), 0o755)
        guest.machine.put("/etc/systemd/system/damage.service", UNIT.encode())
        guest.machine.put("/etc/seamless-upgrade/config.toml", CONFIG.encode())
        guest.shell("systemctl enable damage.service")
        yield guest


def test_damaged_images(guest: Guest) -> None:
    guest.machine.put("/etc/damage", b"container-0/pages-1.img")
    guest.shell("cat /sys/fs/cgroup/workload/redis/cgroup.threads | sort -n | tail -1 > /root/highest")
    guest.jump(guest.kernels[1].release, *BOTH)
    status = guest.command("status", "--wait")
    assert status.status == ExitStatus.DEGRADED, status
    report = guest.command("report", "--json").json
    assert report["outcome"] == "degraded"
    redis, memory = report["containers"]
    assert (redis["name"], redis["outcome"]) == ("/workload/redis", "cold-started")
    assert "pages-1.img: checksum" in redis["reason"]
    assert (memory["name"], memory["outcome"], memory["reason"]) == ("memory", "restored", None)
    assert guest.verify("runc-memory") == {}
    guest.wait("redis-cli ping | grep -q PONG")
    assert guest.shell("redis-cli dbsize").strip() == "0"  # started from cold
    assert guest.shell("cat /proc/$(pgrep -x redis-server)/cgroup").strip() == "0::/workload/redis"
    assert guest.traces()["rules"] == ""
    assert guest.shell("grep pmem /proc/mounts || true") == ""


def test_new_kernel(guest: Guest) -> None:
    """What the first jump of this machine did to the host itself."""
    assert guest.shell("uname -r").strip() == guest.kernels[1].release
    # nothing to recover: the file systems were frozen, not cut off
    assert guest.shell("dmesg | grep -i -e 'recovery complete' -e 'orphan cleanup' || true") == ""
    # the clock was set right before the tasks ran, not to whole seconds of the real time clock
    before = time.time()
    inside = float(guest.shell("date +%s.%N"))
    assert before - 1.5 <= inside <= time.time() + 1.5
    # userspace began above every PID that had to stay free; Redis itself kept none, as it was started from cold
    floor = int(guest.shell("cat /root/highest"))
    own = guest.shell("ps -o pid= --ppid 2 -p 2 --deselect").split()
    assert all(int(pid) > floor for pid in own if pid != "1")


def test_damaged_session(guest: Guest) -> None:
    """The second upgrade of this machine, back to the first kernel: nothing of the range can be believed."""
    guest.machine.put("/etc/damage", b"session.json")
    guest.jump(guest.kernels[0].release, *BOTH, "--no-quiesce", lose_terminal=True)
    status = guest.command("status", "--wait")
    assert status.status == ExitStatus.DEGRADED, status
    report = guest.command("report", "--json").json
    assert report["outcome"] == "degraded"
    assert "session record is damaged" in report["reason"]
    assert {c["name"]: c["outcome"] for c in report["containers"]} == {
        "/workload/redis": "cold-started",
        "memory": "cold-started",
    }
    guest.wait("redis-cli ping | grep -q PONG")
    assert "running" in guest.shell("runc list")
    history = guest.command("history", "--json").json
    assert [k["came_in"] for k in history["kernels"]][-2:] == ["seamless upgrade", "seamless upgrade"]
