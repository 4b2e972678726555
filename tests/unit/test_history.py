# SPDX-License-Identifier: MIT
"""The history of kernels: what is written survives crashes, and what is read makes sense of them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrade.errors import UpgradeError
from upgrade.report import history
from upgrade.report.history import Event, Record

NOW = "2026-11-22T12:00:00Z"


def record(event: Event, hour: int, boot_id: str, session: str | None = None, *livepatches: str) -> Record:
    """Return a record of one morning."""
    release = f"6.12.{ord(boot_id[0])}"
    return Record(event, f"2026-11-22T{hour:02}:00:00Z", boot_id, release, session, livepatches)


def test_records_come_back_in_order(tmp_path: Path) -> None:
    file = tmp_path / "state" / "history.jsonl"
    records = [record(Event.BOOT, 1, "a", None, "patch"), record(Event.JUMP, 2, "a", "s")]
    for one in records:
        history.append(file, one)
    assert history.read(file) == records
    assert json.loads(file.read_text().splitlines()[0])["schema_version"] == 1


def test_no_history_yet(tmp_path: Path) -> None:
    assert history.read(tmp_path / "none") == []
    assert "No kernel" in history.render_text([])


def test_every_torn_end_is_survived(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    first, second, third = (record(Event.BOOT, hour, boot) for hour, boot in enumerate("abc"))
    history.append(file, first)
    start = file.stat().st_size
    history.append(file, second)
    whole = file.read_bytes()
    for length in range(start, len(whole)):
        file.write_bytes(whole[:length])
        survivors = [first, second] if length == len(whole) - 1 else [first]
        assert history.read(file) == survivors
        history.append(file, third)
        assert history.read(file) == [*survivors, third]


@pytest.mark.parametrize(
    "line",
    ["7", "null", "[]", "{}", '{"event": "party"}', '{"event": "boot", "livepatches": []}', "\0\0\0", "\x1f"],
)
def test_lines_that_are_not_ours_are_passed_over(tmp_path: Path, line: str) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(line + "\n")
    history.append(file, record(Event.BOOT, 1, "a"))
    assert history.read(file) == [record(Event.BOOT, 1, "a")]


def test_a_later_version_may_add_members(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    data = record(Event.BOOT, 1, "a").to_json() | {"weather": "fine"}
    file.write_text(json.dumps(data) + "\n")
    assert history.read(file) == [record(Event.BOOT, 1, "a")]


def test_a_start_is_recorded_once(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    assert history.record_start(file, record(Event.UPGRADE, 1, "a", "s"))
    assert not history.record_start(file, record(Event.BOOT, 2, "a"))
    history.append(file, record(Event.JUMP, 3, "a", "t"))
    assert history.record_start(file, record(Event.UPGRADE, 3, "b", "t"))
    assert [r.event for r in history.read(file)] == [Event.UPGRADE, Event.JUMP, Event.UPGRADE]


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UpgradeError) as caught:
        history.append(tmp_path, record(Event.BOOT, 1, "a"))
    assert caught.value.subject == str(tmp_path)
    assert caught.value.hint
    with pytest.raises(UpgradeError):
        history.read(tmp_path)


def test_the_timeline_of_a_morning() -> None:
    records = [
        record(Event.BOOT, 1, "a", None, "patch"),
        record(Event.JUMP, 2, "a", "s1", "patch"),
        record(Event.UPGRADE, 2, "b", "s1"),
        record(Event.SHUTDOWN, 3, "b"),
        record(Event.BOOT, 4, "c"),
        record(Event.BOOT, 6, "d"),
    ]
    spans = history.timeline(records, NOW, "d")
    assert [(s.release, s.came_in, s.session, s.ended, s.until and s.until[11:13]) for s in spans] == [
        ("6.12.97", "boot", None, "seamless upgrade", "02"),
        ("6.12.98", "seamless upgrade", "s1", "shutdown", "03"),
        ("6.12.99", "boot", None, "crash or power loss", None),
        ("6.12.100", "boot", None, "running", None),
    ]
    assert spans[0].livepatches == ("patch",)
    assert history.to_json(spans)["kernels"][0]["from"] == "2026-11-22T01:00:00Z"
    assert history.render_text(spans) == (
        "KERNEL    FROM              UNTIL             CAME IN BY        ENDED BY\n"
        "6.12.100  2026-11-22 06:00  now               boot              running\n"
        "6.12.99   2026-11-22 04:00  unknown           boot              crash or power loss\n"
        "6.12.98   2026-11-22 02:00  2026-11-22 03:00  seamless upgrade  shutdown\n"
        "6.12.97   2026-11-22 01:00  2026-11-22 02:00  boot              seamless upgrade\n"
        "  with live patches: patch\n"
    )


@pytest.mark.parametrize(
    ("more", "running", "ended"),
    [
        ([], "a", "running"),  # the jump was undone, or is about to be
        ([], "b", "seamless upgrade"),  # the next kernel has not recorded itself yet
        ([record(Event.UPGRADE, 3, "b", "s")], "b", "seamless upgrade"),
        ([record(Event.BOOT, 3, "b")], "b", "crash or power loss"),  # nobody came through the jump
        (
            [record(Event.SHUTDOWN, 3, "a")],
            "b",
            "shutdown",
        ),  # the jump was undone, and later it was shut down
    ],
)
def test_what_a_jump_came_to(more: list[Record], running: str, ended: str) -> None:
    records = [record(Event.BOOT, 1, "a"), record(Event.JUMP, 2, "a", "s"), *more]
    assert history.timeline(records, NOW, running)[0].ended == ended


def test_a_clock_set_back_makes_no_negative_spans() -> None:
    records = [record(Event.BOOT, 5, "a"), record(Event.SHUTDOWN, 4, "a"), record(Event.BOOT, 23, "b")]
    first = history.timeline([*records, record(Event.SHUTDOWN, 22, "b")], NOW, "c")
    assert [(s.since <= (s.until or "")) for s in first] == [True, True]


events = st.builds(
    Record,
    event=st.sampled_from(Event),
    at=st.datetimes().map(lambda t: t.isoformat() + "Z"),
    boot_id=st.sampled_from("abcd"),
    release=st.text(),
    session=st.none() | st.text(),
    livepatches=st.lists(st.text(), max_size=2).map(tuple),
    schema_version=st.just(1),
)


@given(st.lists(events), st.sampled_from("abcde"))
def test_every_history_has_a_timeline(records: list[Record], running: str) -> None:
    assert [Record.from_json(json.loads(json.dumps(r.to_json()))) for r in records] == records
    spans = history.timeline(records, NOW, running)
    assert len(spans) == len({r.boot_id for r in records if r.event in history.STARTS})
    assert sum(s.ended == "running" for s in spans) <= 1
    assert history.render_text(spans)
    json.dumps(history.to_json(spans))
