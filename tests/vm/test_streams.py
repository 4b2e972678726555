# SPDX-License-Identifier: MIT
"""Every kind of connection and timer in one upgrade, each with something under way; docs/connections.md lists them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import Guests
from upgrade.errors import ExitStatus
from upgrade.rehearse import probe

TREES = ("/workload/streams", "/workload/streams-peer")
OUTSIDE = ("stream", "client_ended", "server_ended", "idle", "opened", "clock", "udp")
UNIX = tuple(f"unix {kind}" for kind in ("stream", "datagram", "seqpacket", "path", "abstract", "box"))
INSIDE = ("loopback", "pipe", "FIFO", *UNIX)
TIMERS = (
    "timerfd",
    "absolute timerfd",
    "itimer",
    "alarm",
    "POSIX timer",
    "nanosleep",
    "select",
    "futex",
    "clocks",
)
FULL = (
    *(f"{kind} unread" for kind in (*INSIDE, "stream", "client_ended")),
    "loopback unsent",
    "stream unsent",
)
CLOCKS = re.compile(
    r"clocks over the standstill: monotonic ([\d.]+) s, boottime ([\d.]+) s, realtime ([\d.]+) s"
)


@dataclass(frozen=True)
class Seen:
    """What the upgrade was like."""

    report: dict[str, Any]
    verified: str
    probed: dict[str, Any]
    checked: dict[str, Any]
    """What ``check`` says of two other trees with a unix stream between them."""

    def lines(self, kind: str) -> list[str]:
        """Return what ``verify`` says of a kind, without its name."""
        marks = {f"{mark} streams: {kind}:": mark for mark in ("ok   ", "FAIL ")}
        return [
            mark.strip()
            for line in self.verified.splitlines()
            for m, mark in marks.items()
            if line.startswith(m)
        ]


@pytest.fixture(scope="module")
def seen(guests: Guests, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Return what one upgrade with frames in place did to both trees, which have the downtime counted."""
    work = tmp_path_factory.mktemp("streams") / "probes"
    for guest in guests.boot(["streams"], store_mib=256, frames_mib=512):
        with probe.running(guest.workloads, guest.machine.network, work) as probes:
            cgroups = [word for tree in TREES for word in ("--cgroup", tree)]
            guest.jump(guest.kernels[1].release, *cgroups, "--clocks", "run")
            status = guest.command("status", "--wait")
            report = guest.command("report", "--json").json
            verified = guest.machine.run(
                ["/opt/workload/.hooks/streams/verify"], cwd="/opt/workload", timeout=600, check=False
            )
            ended = [each.stop() for each in probes]
        guest.machine.put("/root/pair.py", (Path(__file__).parent / "pair.py").read_bytes())
        guest.shell("setsid --fork python3 /root/pair.py </dev/null >/dev/null 2>/run/pair.err")
        guest.wait("test -e /run/pair || test -s /run/pair.err", 60)
        pair = ("--cgroup", "/workload/pair-a", "--cgroup", "/workload/pair-b")
        checked = guest.command("check", "--json", "--only", "containers.unix", *pair)
        print(verified.stdout, verified.stderr, ended[0]["output"], sep="\n")
        assert status.status == ExitStatus.DONE, (status, report)
        yield Seen(
            report,
            verified.stdout,
            json.loads(str(ended[0]["output"]).strip().splitlines()[-1]),
            checked.json,
        )


def test_both_trees_come_back(seen: Seen) -> None:
    assert {each["name"]: each["outcome"] for each in seen.report["containers"]} == dict.fromkeys(
        TREES, "restored"
    )
    assert "FAIL" not in seen.verified
    assert seen.probed["errors"] == []


@pytest.mark.parametrize("kind", OUTSIDE)
def test_connection_with_the_outside(seen: Seen, kind: str) -> None:
    assert seen.probed["kinds"][kind]["errors"] == []


@pytest.mark.parametrize("kind", [*INSIDE, *TIMERS, "client_ended", "idle"])
def test_inside(seen: Seen, kind: str) -> None:
    assert seen.lines(kind) == ["ok"]


@pytest.mark.parametrize("name", FULL)
def test_something_was_under_way(seen: Seen, name: str) -> None:
    waiting = re.search(rf"{name} when it stood still: (\d+) bytes", seen.verified)
    assert waiting is not None
    assert int(waiting[1]) > 0


def test_a_client_outside_sees_only_a_pause(seen: Seen) -> None:
    downtime = max(each["downtime_seconds"] for each in seen.report["containers"])
    for kind in ("stream", "client_ended", "server_ended", "clock"):
        assert seen.probed["kinds"][kind]["largest_gap_seconds"] <= 1.05 * downtime + 2.0, kind


def test_the_monotonic_clocks_count_the_downtime(seen: Seen) -> None:
    steps = CLOCKS.search(seen.verified)
    assert steps is not None, seen.verified
    monotonic, boottime, realtime = map(float, steps.groups())
    downtime = min(each["downtime_seconds"] for each in seen.report["containers"])
    assert realtime > 0.9 * downtime
    # what CRIU takes between being asked and making the clocks is not counted
    assert monotonic == pytest.approx(realtime, rel=0.05)
    assert boottime == pytest.approx(realtime, rel=0.05)


def test_the_wall_clock_is_that_of_before(seen: Seen) -> None:
    clock = seen.probed["kinds"]["clock"]
    assert clock["offset_after_seconds"] == pytest.approx(clock["offset_before_seconds"], abs=0.25)


def test_a_unix_stream_between_two_trees_is_found_by_check(seen: Seen) -> None:
    found = {each["subject"]: each for each in seen.checked["results"] if each["status"] == "fail"}
    assert "of the container /workload/pair-b" in found["/workload/pair-a"]["seen"]
    assert "of the container /workload/pair-a" in found["/workload/pair-b"]["seen"]


def test_the_table_names_every_kind() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/connections.md").read_text()
    assert [kind for kind in (*OUTSIDE, *INSIDE, *TIMERS) if f"`{kind}`" not in text] == []
