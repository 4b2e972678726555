# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.summary``: the report always fits its schema, and adds up."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from builders.host import BOOT_ID, RELEASE, Machine
from builders.session import HERTZ, TIES, container, dumped, session
from pycriu import images

from upgrade import paths
from upgrade.clock import Clock, frequency
from upgrade.errors import ExitStatus
from upgrade.kexec.initrd import FIRST_USERSPACE
from upgrade.report import history
from upgrade.report.model import PHASES, Report
from upgrade.report.text import render
from upgrade.restore import bootlog, summary
from upgrade.restore.arrival import Arrival
from upgrade.restore.ondemand import Memory
from upgrade.restore.restorer import Restored, work_directory
from upgrade.session import Session

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # pycriu under protobuf 6

VALIDATOR = jsonschema.Draft202012Validator(json.loads((files("upgrade.report") / "schema.json").read_text()))


def second(number: float) -> int:
    """Return the stamp that lies so many seconds after the last tie."""
    return TIES[-1].tsc + round(number * HERTZ)


JUMPED = second(51)
BEGUN_AT = second(56)
BOOTED = {bootlog.KERNEL_START: second(52), FIRST_USERSPACE: second(54.5)}


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return what the kernel's log says; tests change it."""
    found = dict(BOOTED)
    monkeypatch.setattr(bootlog, "tsc_of", lambda marks, clock, rate, host: found)
    return found


def restored(outcome: str = "restored", reason: str | None = None, number: int = 0) -> Restored:
    one = dumped(container(f"/c{number}"), number)
    return Restored(one, outcome, reason, second(59 + number / 2))


def arrived(record: Session) -> Arrival:
    return Arrival(record, frequency(*TIES), JUMPED, Path("/dev/pmem0"))


def written(
    machine: Machine, results: list[Restored], problems: tuple[str, ...] = (), faults: tuple[str, ...] = ()
) -> tuple[int, dict[str, Any]]:
    """Write a report; return the exit status, and the report after it was held against the schema."""
    record = session([r.dumped for r in results])
    for result in results:
        (paths.STORE / result.dumped.directory).mkdir(exist_ok=True)
    clock = Clock(lambda: second(62))
    status = summary.write(machine.host, clock, arrived(record), results, BEGUN_AT, problems, faults)
    data = json.loads((paths.REPORTS / f"{record.id}.json").read_text())
    VALIDATOR.validate(data)
    return status, data


def test_the_report_of_a_success(machine: Machine, here: Path, boot: dict[str, int]) -> None:
    status, report = written(machine, [restored(), restored(number=1)])
    assert status == ExitStatus.DONE
    assert (report["outcome"], report["reason"]) == ("upgraded", None)
    assert (report["kernel_from"], report["kernel_to"]) == (session().kernel_from, RELEASE)
    assert report["downtime_seconds"] == pytest.approx(59.5 - 10)
    assert 0 < report["downtime_error_seconds"] < 0.1
    assert [c["downtime_seconds"] for c in report["containers"]] == [pytest.approx(49), pytest.approx(49.5)]
    assert (report["taint_before"], report["taint_after"]) == (0, 512)
    assert report["livepatches_before"] == ["kpatch_1"]
    assert report["containers"][0]["threads_in_vdso"] == 1


def test_the_phases_are_in_order_and_are_all_of_it(
    machine: Machine, here: Path, boot: dict[str, int]
) -> None:
    _, report = written(machine, [restored()])
    assert [phase["name"] for phase in report["phases"]] == list(PHASES)
    seconds = {phase["name"]: phase["seconds"] for phase in report["phases"]}
    assert seconds == pytest.approx(
        {
            "freeze": 10,
            "dump": 10,
            "capture": 10,
            "quiesce": 10,
            "last look": 1,
            "jump": 1,
            "kernel boot to first userspace": 2.5,
            "userspace to restore": 1.5,
            "restore": 3,
        }
    )
    assert sum(seconds.values()) == pytest.approx(report["downtime_seconds"])


def test_a_log_without_our_mark_counts_the_kernel_s_start(
    machine: Machine, here: Path, boot: dict[str, int]
) -> None:
    del boot[FIRST_USERSPACE]
    _, report = written(machine, [restored()])
    assert {p["name"]: p["seconds"] for p in report["phases"]}["kernel boot to first userspace"] == 0


def test_a_log_that_cannot_be_read_loses_no_report(
    machine: Machine, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> dict[str, int]:
        raise PermissionError(1, "Operation not permitted", "/dev/kmsg")

    monkeypatch.setattr(bootlog, "tsc_of", broken)
    status, report = written(machine, [restored()])
    assert status == ExitStatus.DONE
    assert sum(p["seconds"] for p in report["phases"]) == pytest.approx(49)


@pytest.mark.parametrize(("outcome", "downtime"), [("cold-started", 49.5), ("lost", None)])
def test_what_was_not_restored_degrades_the_upgrade(
    machine: Machine, here: Path, boot: dict[str, int], outcome: str, downtime: float | None
) -> None:
    status, report = written(
        machine, [restored(), restored(outcome, "its images are damaged", 1)], ("problem",)
    )
    assert status == ExitStatus.DEGRADED
    assert report["outcome"] == "degraded"
    assert report["reason"] == "/c1: its images are damaged"
    assert report["containers"][1]["downtime_seconds"] == (downtime and pytest.approx(downtime))
    assert report["warnings"] == ["/boot (vfat) cannot be frozen; it was only synced", "problem"]


def statistics(directory: Path) -> None:
    entry = {
        "restore": {"pages_compared": 1, "pages_skipped_cow": 0, "forking_time": 25, "restore_time": 240}
    }
    with (directory / "stats-restore").open("wb") as f:
        images.dump({"magic": "STATS", "entries": [entry]}, f)


def test_what_criu_counted_is_in_the_report(machine: Machine, here: Path, boot: dict[str, int]) -> None:
    result = restored()
    statistics(work_directory(result.dumped))
    _, report = written(machine, [result])
    assert report["containers"][0]["restore"]["restore_time"] == 240
    assert report["containers"][0]["dump"]["frozen_time"] == pytest.approx(30e6, abs=2)


@pytest.mark.parametrize("content", [b"", b"\1", b"no statistics at all", bytes(64)])
def test_statistics_that_are_damaged_lose_no_report(
    machine: Machine, here: Path, boot: dict[str, int], content: bytes
) -> None:
    result = restored()
    (work_directory(result.dumped) / "stats-restore").write_bytes(content)
    _, report = written(machine, [result])
    assert report["containers"][0]["restore"] == {}


def test_pages_are_counted_and_damaged_pagemaps_lose_no_report(
    machine: Machine, here: Path, boot: dict[str, int]
) -> None:
    results = [restored(), restored(number=1)]
    good, bad = (paths.STORE / r.dumped.directory for r in results)
    for directory in (good, bad):
        directory.mkdir()
        (directory / "pages-1.img").write_bytes(bytes(3 * 4096))
    entries = [{"pages_id": 1}, {"vaddr": 4096, "nr_pages": 5, "flags": 4}]
    with (good / "pagemap-500.img").open("wb") as f:
        images.dump({"magic": "PAGEMAP", "entries": entries}, f)
    (bad / "pagemap-500.img").write_bytes(b"damaged")
    _, report = written(machine, results)
    counted = [(c["pages_total"], c["pages_copied"], c["bytes_copied"]) for c in report["containers"]]
    assert counted == [(5, 5, 5 * 4096), (0, 0, 0)]
    assert (report["pages_total"], report["bytes_copied"]) == (5, 5 * 4096)


def test_frames_in_place_are_not_counted_as_copied(
    machine: Machine, here: Path, boot: dict[str, int]
) -> None:
    result = restored()
    kept = replace(result.dumped, in_place=True, frame_files=("pages-1.img",), stragglers=2)
    directory = paths.STORE / kept.directory
    directory.mkdir()
    for number, pages in ((1, 5), (2, 4)):
        entries = [{"pages_id": number}, {"vaddr": 4096, "nr_pages": pages, "flags": 4}]
        with (directory / f"pagemap-50{number}.img").open("wb") as f:
            images.dump({"magic": "PAGEMAP", "entries": entries}, f)
    _, report = written(machine, [replace(result, dumped=kept)])
    container = report["containers"][0]
    assert (container["in_place"], container["pages_total"], container["pages_copied"]) == (True, 9, 2 + 4)
    assert report["restore_mode"] == "eager"


def complete(result: Restored, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, Any]]:
    """Have the memory of a container come, five seconds before the clock says 80."""
    monkeypatch.setattr("time.monotonic_ns", lambda: 75 * 10**9)
    record = session([result.dumped])
    clock = Clock(lambda: second(80))
    status = summary.complete(clock, arrived(record), {"/c0": memory}, ExitStatus.DONE)
    data = json.loads((paths.REPORTS / f"{record.id}.json").read_text())
    VALIDATOR.validate(data)
    return status, data


def test_the_report_is_completed_when_the_memory_is(
    machine: Machine, here: Path, boot: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = replace(restored(), lazy=True)
    _, before = written(machine, [result])
    assert before["restore_mode"] == "lazy"
    assert before["containers"][0]["memory_complete_seconds"] is None
    status, after = complete(result, Memory(70 * 10**9, None), monkeypatch)
    assert (status, after["outcome"]) == (ExitStatus.DONE, "upgraded")
    assert after["containers"][0]["memory_complete_seconds"] == pytest.approx(80 - 5 - 10)
    assert after["containers"][0]["downtime_seconds"] == before["containers"][0]["downtime_seconds"]


@pytest.mark.parametrize("moment", [None, 70 * 10**9])
def test_memory_that_did_not_come_degrades_the_upgrade(
    machine: Machine, here: Path, boot: dict[str, int], monkeypatch: pytest.MonkeyPatch, moment: int | None
) -> None:
    result = replace(restored(), lazy=True)
    written(machine, [result])
    status, report = complete(result, Memory(moment, "2 pages could not be read"), monkeypatch)
    assert (status, report["outcome"]) == (ExitStatus.DEGRADED, "degraded")
    assert report["reason"] == "/c0: 2 pages could not be read"
    assert report["containers"][0]["reason"] == "2 pages could not be read"
    assert report["containers"][0]["memory_complete_seconds"] is None
    text = render(Report.from_json(report))
    assert "/c0 runs, but" in text


def test_the_history_has_the_old_kernel_s_end_and_the_new_one_s_start(
    machine: Machine, here: Path, boot: dict[str, int]
) -> None:
    written(machine, [restored()])
    records = {record.event: record for record in history.read(paths.HISTORY)}
    assert records[history.Event.JUMP].boot_id == session().boot_id
    assert records[history.Event.JUMP].release == session().kernel_from
    assert records[history.Event.JUMP].at == "2001-09-09T01:49:11+00:00"  # the last tie, and 51 s
    assert records[history.Event.UPGRADE].boot_id == BOOT_ID
    assert records[history.Event.UPGRADE].session == session().id


def test_without_the_memory_the_plan_tells_who_there_was(machine: Machine, here: Path) -> None:
    plan = session([dumped(container(f"/c{n}"), n, frozen_at=0) for n in range(2)], stamps={}, ties=())
    results = [
        Restored(d, o, "gone", 0) for d, o in zip(plan.containers, ("cold-started", "lost"), strict=True)
    ]
    status = summary.write_without_store(machine.host, plan.id, plan, results, "its contents did not survive")
    assert status == ExitStatus.DEGRADED
    report = json.loads((paths.REPORTS / f"{plan.id}.json").read_text())
    VALIDATOR.validate(report)
    assert (report["outcome"], report["reason"]) == ("degraded", "its contents did not survive")
    assert [c["outcome"] for c in report["containers"]] == ["cold-started", "lost"]
    assert [c["downtime_seconds"] for c in report["containers"]] == [None, None]


def test_without_the_plan_either_it_is_degraded_and_on_record(
    machine: Machine, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = summary.write_without_store(machine.host, "gone", None, [], "lost")
    assert status == ExitStatus.DEGRADED
    assert [r.event for r in history.read(paths.HISTORY)] == [history.Event.UPGRADE]
    assert "no container could be started" in capsys.readouterr().err


def test_a_restore_that_died_makes_a_degraded_upgrade(
    machine: Machine, here: Path, boot: dict[str, int]
) -> None:
    status, report = written(machine, [restored()], faults=("the restore process died",))
    assert status == ExitStatus.DEGRADED
    assert (report["outcome"], report["reason"]) == ("degraded", "the restore process died")
    assert report["containers"][0]["outcome"] == "restored"


def test_a_warning_comes_later(machine: Machine, here: Path, boot: dict[str, int]) -> None:
    _, before = written(machine, [restored()], ("the first",))
    summary.warn(session(), "the second")
    after = json.loads((paths.REPORTS / f"{session().id}.json").read_text())
    assert after["warnings"] == [*before["warnings"], "the second"]
    assert {**after, "warnings": before["warnings"]} == before
