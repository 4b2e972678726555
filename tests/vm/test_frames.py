# SPDX-License-Identifier: MIT
"""Page frames stay in place: to and fro in one machine, each time under conditions that move or swap pages."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.vm.conftest import REPOSITORY, Guest, Guests
from upgrade.errors import ExitStatus

HERE = Path(__file__).parent
SCHEMA = json.loads((REPOSITORY / "upgrade/report/schema.json").read_text())
NAMES = ("redis", "runc-memory", "threads")
HOLDER = "/sys/fs/cgroup/workload/holder"
ALL = (
    *("--cgroup", "/workload/redis", "--cgroup", "/workload/threads", "--cgroup", "/workload/holder"),
    *("--container", "memory"),
)
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


@dataclass(frozen=True)
class Condition:
    """Something that happens to a host, and what is done for it before an upgrade."""

    name: str
    script: str
    copied: float = 0.005
    """Such a share of a task's own pages may have to be copied at the most."""


# After the first round the containers lie outside of R.
CONDITIONS = (
    Condition(
        "KSM on, THP never",
        f"echo never > {THP}; echo 20000 > /sys/kernel/mm/ksm/pages_to_scan; echo 1 > /sys/kernel/mm/ksm/run; "
        "for i in $(seq 120); do [ $(cat /sys/kernel/mm/ksm/pages_sharing) -gt 1000 ] && exit 0; sleep 1; done; "
        "echo nothing was merged; exit 1",
    ),
    Condition(
        "THP always, R full of page cache",
        f"echo always > {THP}; truncate -s 3G /sparse; cat /sparse >/dev/null; free -m >&2",
    ),
    Condition(
        "swap on, containers swapped out in part",
        "fallocate -l 256M /swapfile; chmod 600 /swapfile; mkswap -q /swapfile; swapon /swapfile; "
        "python3 /root/page_out.py $(cat /sys/fs/cgroup/workload/*/cgroup.procs); "
        "cat /proc/swaps >&2; awk '/VmSwap/ {s += $2} END {exit !(s > 1000)}' "
        "$(sed 's,.*,/proc/&/status,' /sys/fs/cgroup/workload/*/cgroup.procs)",
        # some pages that are in the cache of somebody else's swap device cannot be paged out to ours
        copied=0.03,
    ),
)


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a guest with a range for frames and four containers."""
    for guest in guests.boot(NAMES, store_mib=256, frames_mib=1024):
        for name in ("holder.py", "page_out.py"):
            guest.machine.put(f"/root/{name}", (HERE / name).read_bytes())
        guest.shell(
            f"mkdir -p {HOLDER}; sh -c 'echo $$ > {HOLDER}/cgroup.procs; "
            "exec setsid --fork python3 /root/holder.py /root/held </dev/null >/dev/null 2>&1'"
        )
        guest.wait("test -s /root/held")
        yield guest


def held(guest: Guest) -> tuple[int, int]:
    """Return how often the holder found its memory as it was, and its PID."""
    text = guest.shell("cat /root/held")
    found = re.fullmatch(r"(\d+) rounds, pid (\d+)\n", text)
    assert found, text
    return int(found[1]), int(found[2])


# more for a longer look: SEAMLESS_UPGRADE_ROUNDS=10
ROUNDS = int(os.environ.get("SEAMLESS_UPGRADE_ROUNDS", len(CONDITIONS)))


@pytest.mark.parametrize(
    "number", range(ROUNDS), ids=[f"{n + 1}: {CONDITIONS[n % len(CONDITIONS)].name}" for n in range(ROUNDS)]
)
def test_there_and_back(guest: Guest, number: int) -> None:
    guest.shell(CONDITIONS[number % len(CONDITIONS)].script)
    target = guest.kernels[1 - number % 2].release
    rounds, pid = held(guest)
    guest.jump(target, "--pages", "in-place", *ALL)
    status = guest.command("status", "--wait")
    report: dict[str, Any] = guest.command("report", "--json").json
    assert status.status == ExitStatus.DONE, (status, report["reason"])
    assert guest.shell("uname -r").strip() == target
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    copied = {each["name"]: (each["pages_copied"], each["pages_total"]) for each in report["containers"]}
    print(f"copied: {copied}; {report['gathering']}")
    assert report["outcome"] == "upgraded", report["reason"]
    assert report["taint_after"] == report["taint_before"], guest.shell("dmesg | grep -A20 WARNING || true")
    for container in report["containers"]:
        assert container["outcome"] == "restored", container
        assert container["in_place"], container
    assert guest.verify(*NAMES) == {}
    guest.wait(f"! grep -q '^{rounds} ' /root/held")
    assert held(guest)[1] == pid
    assert held(guest)[0] > rounds
    # the range is memory again, and nothing is left mounted
    frames = guest.command("status", "--json").json["frames"]
    assert [span["online_bytes"] >> 20 for span in frames] == [1024]
    assert guest.shell("grep -e erofs -e pmem /proc/mounts || true") == ""
    # what one task alone has stays; what fork shares may have to be copied
    redis = next(c for c in report["containers"] if c["name"] == "/workload/redis")
    share = CONDITIONS[number % len(CONDITIONS)].copied
    assert redis["pages_copied"] <= share * redis["pages_total"] + 16, redis


def test_status_and_check_tell_where_memory_lies(guest: Guest) -> None:
    status = guest.command("status", "--json").json
    assert {each["name"] for each in status["residence"]} >= {"memory", "/workload/redis"}
    check = guest.command("check", "--json", "--kernel", guest.target, "--cgroup", "/workload/redis").json
    assert check["residence"][0]["pages"] > check["residence"][0]["pages_in_place"]


def test_failure_after_gathering_leaves_no_trace(guest: Guest) -> None:
    """An io_uring cannot be dumped: everything that was prepared for the frames is undone if nobody looked before."""
    guest.machine.put("/root/io_uring.py", (HERE / "io_uring.py").read_bytes())
    guest.shell(
        "mkdir -p /sys/fs/cgroup/workload/uring; sh -c 'echo $$ > /sys/fs/cgroup/workload/uring/cgroup.procs; "
        "exec setsid --fork python3 /root/io_uring.py </dev/null >/dev/null 2>&1'"
    )
    guest.wait('test -n "$(cat /sys/fs/cgroup/workload/uring/cgroup.procs)"')
    knobs = "cat /proc/sys/vm/swappiness /proc/sys/vm/compaction_proactiveness /sys/kernel/mm/ksm/run; cat /proc/swaps"
    before, settings = guest.traces(), guest.shell(knobs)
    answer = guest.upgrade(
        *("--pages", "in-place", "--skip", "containers.descriptors"),
        *("--cgroup", "/workload/uring", "--cgroup", "/workload/redis"),
    )
    assert answer.status == ExitStatus.FAILED, answer
    assert answer.error["subject"] == "/workload/uring"
    assert guest.traces() == before
    assert guest.shell(knobs) == settings
    assert guest.verify("redis") == {}


UNIT = """[Unit]
DefaultDependencies=no
ConditionPathExists=/etc/damage
ConditionKernelCommandLine=seamless_upgrade.session
After=systemd-remount-fs.service
Before=seamless-upgrade-restore.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 /root/damage_frames.py
[Install]
WantedBy=sysinit.target
"""


def test_damaged_frame(guest: Guest) -> None:
    """One wrong page among all is found before a task runs, if all are verified."""
    guest.machine.put("/root/damage_frames.py", (HERE / "damage_frames.py").read_bytes())
    guest.machine.put("/etc/systemd/system/damage.service", UNIT.encode())
    guest.machine.put("/etc/damage", b"")
    guest.shell("systemctl daemon-reload; systemctl enable damage.service")
    guest.jump(
        guest.kernels[0].release, "--verify", "frames", "--cgroup", "/workload/redis", "--container", "memory"
    )
    status = guest.command("status", "--wait")
    assert status.status == ExitStatus.DEGRADED, (status, guest.shell("journalctl -b -u damage"))
    redis, memory = guest.command("report", "--json").json["containers"]
    assert redis["outcome"] == "lost"  # no cold start command is configured
    assert re.search(
        r"page frames are damaged: 0-pages-1.img: other contents, pages 128 to 159", redis["reason"]
    )
    assert (memory["outcome"], memory["reason"]) == ("restored", None)
    assert guest.verify("runc-memory") == {}
    assert guest.shell("grep -e erofs -e pmem /proc/mounts || true") == ""
