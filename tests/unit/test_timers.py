# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.timers`` on images that pycriu wrote."""

from pathlib import Path
from typing import Any

import pytest
from pycriu import images

from upgrade.dump import timers
from upgrade.errors import UpgradeError

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # pycriu under protobuf 6

FOWN = {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}


def timer(number: int, *, left: tuple[int, int], interval: tuple[int, int], ticks: int) -> dict[str, Any]:
    entry = {"id": number, "flags": 2, "fown": FOWN, "clockid": 1, "ticks": ticks, "settime_flags": 0}
    entry |= {"vsec": left[0], "vnsec": left[1], "isec": interval[0], "insec": interval[1]}
    return {"type": "TIMERFD", "id": number, "tfd": entry}


REGULAR = {"type": "REG", "id": 9, "reg": {"id": 9, "flags": 0, "pos": 7, "fown": FOWN, "name": "/x"}}


def write(directory: Path, entries: list[dict[str, Any]]) -> None:
    with (directory / "files.img").open("wb") as f:
        images.dump({"magic": "FILES", "entries": entries}, f)


def read(directory: Path) -> list[dict[str, Any]]:
    with (directory / "files.img").open("rb") as f:
        found: list[dict[str, Any]] = images.load(f)["entries"]
    return found


def test_a_periodic_timer_that_has_expired_goes_on_and_nothing_else_changes(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            REGULAR,
            timer(1, left=(0, 0), interval=(2, 500), ticks=3),
            timer(2, left=(0, 5), interval=(2, 500), ticks=0),
        ],
    )
    before = read(tmp_path)
    assert timers.mend(tmp_path) == 1
    after = read(tmp_path)
    assert (after[1]["tfd"]["vsec"], after[1]["tfd"]["vnsec"], after[1]["tfd"]["ticks"]) == (2, 500, 3)
    after[1]["tfd"] |= {"vsec": 0, "vnsec": 0}
    assert after == before


@pytest.mark.parametrize(
    "entry",
    [
        timer(1, left=(0, 0), interval=(2, 0), ticks=0),  # disarmed
        timer(1, left=(0, 0), interval=(0, 0), ticks=1),  # fired once, and is done
        timer(1, left=(1, 0), interval=(2, 0), ticks=4),  # nobody reads it, but it runs
        REGULAR,
    ],
)
def test_others_stay_as_they_are_to_the_byte(tmp_path: Path, entry: dict[str, Any]) -> None:
    write(tmp_path, [entry])
    before = (tmp_path / "files.img").read_bytes()
    assert timers.mend(tmp_path) == 0
    assert (tmp_path / "files.img").read_bytes() == before


def test_no_files_are_no_timers(tmp_path: Path) -> None:
    assert timers.mend(tmp_path) == 0


def test_what_is_no_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "files.img").write_bytes(b"something else")
    with pytest.raises(UpgradeError):
        timers.mend(tmp_path)
