# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.timens`` on images that pycriu wrote."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from pycriu import images

from upgrade.restore import timens

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # pycriu under protobuf 6

SECOND_NS = 10**9
LONG_NS = 10**15
MONOTONIC, BOOTTIME = (100, 999_999_999), (2000, 0)


def write(path: Path, seconds_ago: float) -> None:
    clocks = [{"tv_sec": s, "tv_nsec": ns} for s, ns in (MONOTONIC, BOOTTIME)]
    with path.open("wb") as f:
        images.dump(
            {"magic": "TIMENS", "entries": [dict(zip(("monotonic", "boottime"), clocks, strict=True))]}, f
        )
    at = time.time_ns() - round(seconds_ago * SECOND_NS)
    os.utime(path, ns=(at, at))


def read(path: Path) -> tuple[int, int]:
    with path.open("rb") as f:
        entry: dict[str, Any] = images.load(f)["entries"][0]
    found = [
        int(entry[c]["tv_sec"]) * SECOND_NS + int(entry[c]["tv_nsec"]) for c in ("monotonic", "boottime")
    ]
    assert all(0 <= int(entry[c]["tv_nsec"]) < SECOND_NS for c in ("monotonic", "boottime"))
    return found[0], found[1]


AT_DUMP = tuple(s * SECOND_NS + ns for s, ns in (MONOTONIC, BOOTTIME))


@pytest.mark.parametrize("name", ["timens-0.img", "timens-7.img"])
def test_both_clocks_get_the_time_since_the_image_was_written(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, 40)
    before = time.time_ns()
    added = timens.count(tmp_path, LONG_NS)
    assert 0 <= added - 40 * SECOND_NS <= time.time_ns() - before + SECOND_NS // 100
    assert read(tmp_path / name) == (AT_DUMP[0] + added, AT_DUMP[1] + added)


def test_no_more_than_can_be(tmp_path: Path) -> None:
    write(tmp_path / "timens-0.img", 40)
    assert timens.count(tmp_path, 3 * SECOND_NS) == 3 * SECOND_NS


def test_a_wall_clock_that_went_back_adds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "timens-0.img", -40)
    assert timens.count(tmp_path, LONG_NS) == 0
    assert read(tmp_path / "timens-0.img") == AT_DUMP


def test_a_counter_that_went_back_adds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "timens-0.img", 40)
    assert timens.count(tmp_path, -5) == 0
    assert read(tmp_path / "timens-0.img") == AT_DUMP


def test_a_second_restore_begins_with_what_criu_wrote(tmp_path: Path) -> None:
    write(tmp_path / "timens-0.img", 40)
    dumped = (tmp_path / "timens-0.img").read_bytes()
    timens.count(tmp_path, LONG_NS)
    assert (tmp_path / "timens-0.img").read_bytes() != dumped
    timens.undo(tmp_path)
    assert (tmp_path / "timens-0.img").read_bytes() == dumped
    assert os.listdir(tmp_path) == ["timens-0.img"]
    assert timens.count(tmp_path, LONG_NS) >= 40 * SECOND_NS
    timens.undo(tmp_path)
    timens.undo(tmp_path)
    assert read(tmp_path / "timens-0.img") == AT_DUMP


def test_clocks_that_were_not_dumped_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "timens-0.img").write_bytes(timens.MAGIC)
    assert timens.count(tmp_path, LONG_NS) == 0
    assert (tmp_path / "timens-0.img").read_bytes() == timens.MAGIC
