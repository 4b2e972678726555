# SPDX-License-Identifier: MIT
"""Reports on disk: whole or not there, and clear words where they are missing or damaged."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import example

from upgrade.errors import UpgradeError
from upgrade.report import store
from upgrade.report.model import Outcome


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "reports"
    file = store.save(directory, example())
    assert store.load(directory, example().id) == store.load(directory) == example()
    assert [f.name for f in directory.iterdir()] == [file.name]


def test_the_latest_is_the_last_one_written(tmp_path: Path) -> None:
    for number, id in enumerate(("b", "c", "a")):
        file = store.save(tmp_path, replace(example(), id=id))
        os.utime(file, ns=(number, number))
    assert store.ids(tmp_path) == ["b", "c", "a"]
    assert store.load(tmp_path).id == "a"


def test_saving_again_replaces(tmp_path: Path) -> None:
    store.save(tmp_path, example())
    store.save(tmp_path, example(Outcome.DEGRADED))
    assert store.load(tmp_path).outcome is Outcome.DEGRADED


def test_a_write_that_fails_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(tmp_path, example())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UpgradeError) as caught:
        store.save(tmp_path, example(Outcome.DEGRADED))
    assert "No space left" in caught.value.message
    assert caught.value.hint
    assert store.load(tmp_path) == example()
    assert len(list(tmp_path.iterdir())) == 1


def test_no_reports(tmp_path: Path) -> None:
    with pytest.raises(UpgradeError) as caught:
        store.load(tmp_path / "none")
    assert caught.value.subject == str(tmp_path / "none")
    assert caught.value.hint


def test_an_unknown_id_names_the_known_ones(tmp_path: Path) -> None:
    store.save(tmp_path, example())
    with pytest.raises(UpgradeError) as caught:
        store.load(tmp_path, "yesterday")
    assert caught.value.subject == "yesterday"
    assert example().id in (caught.value.hint or "")


@pytest.mark.parametrize("id", ["", "../../etc/passwd", ".hidden", "a/b", "a\0b"])
def test_an_id_is_no_path(tmp_path: Path, id: str) -> None:
    with pytest.raises(UpgradeError):
        store.load(tmp_path, id)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"schema_version": 2}', b'{"schema_version": 1}', b"\xff\xfe"]
)
def test_a_damaged_report(tmp_path: Path, content: bytes) -> None:
    file = store.save(tmp_path, example())
    file.write_bytes(content)
    with pytest.raises(UpgradeError) as caught:
        store.load(tmp_path)
    assert caught.value.subject == str(file)
    assert "damaged" in caught.value.message
    assert caught.value.hint
