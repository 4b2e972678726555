# SPDX-License-Identifier: MIT
"""The main job: kernels are replaced under Redis, a runc container and a ring of threads."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.vm.conftest import REPOSITORY, WORKLOADS
from upgrade.rehearse.rehearsal import Options, rehearse

ROUNDS = 2
NAMES = ("redis", "runc-memory", "threads")
SCHEMA = json.loads((REPOSITORY / "upgrade/report/schema.json").read_text())


def upgrade(target: str, rounds: int, frames_mib: int | None = None) -> dict[str, Any]:
    """Rehearse an upgrade of everything; the machine has ended when this returns."""
    workloads: tuple[Path, ...] = tuple(WORKLOADS / name for name in NAMES)
    return rehearse(Options("trixie", target, workloads, frames_mib=frames_mib, rounds=rounds), print)


def gap(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what the client outside of a workload saw."""
    found: dict[str, Any] = json.loads(result["workloads"][name]["probe"]["output"].strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def there_and_back() -> dict[str, Any]:
    """Return the result of upgrades to and fro in one machine without a range for frames: pages are copied."""
    return upgrade("trixie-security", rounds=ROUNDS, frames_mib=0)


@pytest.fixture(scope="module")
def to_sid() -> dict[str, Any]:
    """Return the result of an upgrade from 6.12 to 7.x, with frames in place."""
    return upgrade("sid", rounds=1)


def check_round(done: dict[str, Any]) -> None:
    """See that one upgrade brought everything back, and that its report is sound."""
    report = done["report"]
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    assert report["outcome"] == "upgraded", report["reason"]
    assert (report["kernel_from"], report["kernel_to"]) == (done["kernel_from"], done["kernel_to"])
    assert {c["name"]: c["outcome"] for c in report["containers"]} == {
        "/workload/redis": "restored",
        "/workload/threads": "restored",
        "memory": "restored",
    }
    for name, verdict in done["verify"].items():
        assert verdict["exit_status"] == 0, f"{name}: {verdict['output']}"
    assert all(phase["seconds"] >= 0 for phase in report["phases"])
    whole = sum(phase["seconds"] for phase in report["phases"])
    assert report["downtime_seconds"] == pytest.approx(whole)
    assert report["downtime_error_seconds"] < 0.001 * report["downtime_seconds"] + 0.01
    assert report["warnings"] == []


def test_there_and_back(there_and_back: dict[str, Any]) -> None:
    assert there_and_back["outcome"] == "passed", there_and_back["error"]
    assert len(there_and_back["rounds"]) == ROUNDS
    for done in there_and_back["rounds"]:
        check_round(done)
        assert done["report"]["pages_copied"] == done["report"]["pages_total"] > 10_000
        assert done["report"]["vdso"]["method"] == "in-place"


@pytest.mark.parametrize(
    ("name", "container"), [("redis", "/workload/redis"), ("threads", "/workload/threads")]
)
def test_client_outside_sees_only_a_pause(there_and_back: dict[str, Any], name: str, container: str) -> None:
    seen = gap(there_and_back, name)
    assert seen["errors"] == []
    own = [
        next(c for c in done["report"]["containers"] if c["name"] == container)["downtime_seconds"]
        for done in there_and_back["rounds"]
    ]
    error = max(done["report"]["downtime_error_seconds"] for done in there_and_back["rounds"])
    # Beside the error bound and the client's period there is the way of a packet through an emulated machine that
    # has just got busy; what must not be in it is a retransmission's doubled wait, which would be seconds.
    slack = error + seen["period_seconds"] + 0.05 * max(own) + 0.5
    assert max(own) - slack <= seen["largest_gap_seconds"] <= max(own) + slack


def test_to_another_major_version(to_sid: dict[str, Any]) -> None:
    assert to_sid["outcome"] == "passed", to_sid["error"]
    check_round(to_sid["rounds"][0])
    report = to_sid["rounds"][0]["report"]
    assert report["restore_mode"] != "copy"
    assert report["pages_copied"] < 0.005 * report["pages_total"]
    vdso = to_sid["report"]["vdso"]
    assert vdso["method"] == "proxy"
    changed = {s["name"]: s["change"] for s in vdso["symbols"] if s["bits"] == 64}
    assert changed["__vdso_clock_gettime"] == "moved"
    assert changed["__vdso_futex_robust_list64_try_unlock"] == "added"
    assert any("clock_getres" in finding for finding in vdso["findings"])
