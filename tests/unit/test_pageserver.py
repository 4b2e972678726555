# SPDX-License-Identifier: MIT
"""Tests of the page server with real userfaultfds, real tasks and a stand-in for systemd."""

import json
import random
import time
from pathlib import Path

import pytest
from builders.lazy import Manager, result, start_task, write_dump

from upgrade.userfaultfd import PAGE_BYTES

BASE = 0x200000000000
PID = 4242


def description(tmp_path: Path, *names: str) -> Path:
    """Write a description and make the directories of its containers."""
    containers = []
    for name in names:
        images, work = tmp_path / name / "images", tmp_path / name / "work"
        images.mkdir(parents=True)
        work.mkdir()
        containers.append({"name": name, "images": str(images), "work": str(work)})
    path = tmp_path / "pages.json"
    path.write_text(json.dumps({"containers": containers}))
    return path


def layout(pages: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return mappings and the lazy runs in them: three of each, with holes of zeroes between."""
    maps, runs = [], []
    for n in range(3):
        at = BASE + n * (1 << 36)
        maps.append((at, pages // 3 + 64))
        runs += [(at + 3 * PAGE_BYTES, pages // 6), (at + (pages // 6 + 20) * PAGE_BYTES, pages // 6)]
    return maps, runs


def progress(path: Path) -> list[dict[str, object]]:
    containers: list[dict[str, object]] = json.loads(path.with_name("pages-progress.json").read_text())[
        "containers"
    ]
    return containers


@pytest.mark.parametrize("scenario", ["read", "scattered"])
def test_every_page_comes_and_the_server_ends(tmp_path: Path, scenario: str) -> None:
    path = description(tmp_path, "a")
    maps, runs = layout(6000)
    write_dump(tmp_path / "a" / "images", PID, runs)
    with Manager(path) as manager:
        task = start_task(
            tmp_path / "a" / "work", PID, scenario, maps=maps, runs=runs, early=[runs[0][0], maps[0][0]]
        )
        assert result(task) == "right"
        assert manager.ended.wait(20)
        assert (manager.status, manager.starts) == (0, 1)
    (told,) = progress(path)
    assert told["done_bytes"] == told["total_bytes"] == 6000 * PAGE_BYTES
    assert (told["name"], told["error"]) == ("a", None)
    assert isinstance(told["finished_at"], int)
    assert not path.with_suffix(".d").exists()


@pytest.mark.parametrize("kills", [0, 12])
def test_what_tasks_do_to_their_memory_is_followed(tmp_path: Path, kills: int) -> None:
    path = description(tmp_path, "a")
    maps, runs = layout(6000)
    write_dump(tmp_path / "a" / "images", PID, runs)
    chance = random.Random(kills)
    with Manager(path) as manager:
        task = start_task(
            tmp_path / "a" / "work", PID, "acts", maps=maps, runs=runs, seconds=3, seed=kills, early=[]
        )
        for _ in range(kills):
            time.sleep(chance.random() * 0.3)
            manager.kill()
        assert result(task) == "right"
        assert manager.ended.wait(20)
        assert manager.status == 0
    assert progress(path)[0]["error"] is None
