# SPDX-License-Identifier: MIT
"""Tests of the page server with real userfaultfds, real tasks and a stand-in for systemd."""

import errno
import json
import os
import random
import select
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from builders.lazy import DEADLY, Manager, result, start_task, write_dump

from upgrade import userfaultfd
from upgrade.restore import ondemand, pageserver
from upgrade.restore.journal import Journal
from upgrade.restore.lazy import Layout
from upgrade.restore.lazytask import Gate, Task
from upgrade.restore.pagesfile import PagesFile
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
        assert not [
            name for name in manager.names if name.startswith("orphan")
        ]  # the keeper ended in silence
    (told,) = progress(path)
    assert told["done_bytes"] == told["total_bytes"] == 6000 * PAGE_BYTES
    assert (told["name"], told["error"]) == ("a", None)
    assert isinstance(told["finished_at"], int)
    assert not path.with_suffix(".d").exists()


@pytest.mark.parametrize("kills", [0, 8])
def test_what_tasks_do_to_their_memory_is_followed(tmp_path: Path, kills: int) -> None:
    """Writes, forks, mremap, munmap, mprotect and madvise while the memory comes, and while the server dies."""
    path = description(tmp_path, "a")
    maps, runs = layout(12000)
    write_dump(tmp_path / "a" / "images", PID, runs)
    chance = random.Random(kills)
    with Manager(path, pace=0.01) as manager:
        task = start_task(
            tmp_path / "a" / "work", PID, "acts", maps=maps, runs=runs, seconds=3, seed=kills, early=[]
        )
        for _ in range(kills):
            assert manager.ready.wait(20)
            time.sleep(chance.random() * 0.3)
            manager.kill()
        assert result(task) == "right"
        assert manager.ended.wait(20)
        assert manager.status == 0
    assert progress(path)[0]["error"] is None


# Where the server is killed: in the life of a child whose fork it has read, and of whoever then takes care of that.
MOMENTS = {
    "child": "fdstore, 'store', lambda name, fd: name == 'task.0.4242.0', 'before'",
    "stored": "fdstore, 'store', lambda name, fd: name == 'task.0.4242.0', 'after'",
    "journal": "pageserver.Server, '_add', lambda self, _, name, *rest: name == 'task.0.4242.0', 'before'",
    "grandchild": "fdstore, 'store', lambda name, fd: name == 'task.0.4242.0.0', 'before'",
    "link": "orphans.Path, 'symlink_to', lambda path, to: path.name == 'task.0.4242.0.orphan', 'before'",
    "linked": "orphans.Path, 'symlink_to', lambda path, to: path.name == 'task.0.4242.0.orphan', 'after'",
    "adopted": "pageserver.Server, '_adopt', lambda self, name, fd: name == 'task.0.4242.0', 'before'",
    "line": "fdstore, 'store', lambda name, fd: name == 'criu.0', 'before'",
    "again": "pageserver.CriuLine, '_hear', lambda self, line: True, 'before'",
    "peeked": "fdstore, 'store', lambda name, fd: name == 'task.0.4242', 'before'",
    "parent": "pageserver.Server, '_adopt', lambda self, name, fd: name == 'task.0.4242', 'before'",
    "done": "fdstore, 'remove', lambda name: name.startswith('orphan'), 'after'",
}


def deaths(tmp_path: Path, *moments: str) -> str:
    """Return what has the server killed at each of some moments."""
    flags = [tmp_path / f"killed-{moment}" for moment in moments]
    calls = [f"deadly({MOMENTS[m]}, {str(flag)!r})" for m, flag in zip(moments, flags, strict=True)]
    return "\n".join([DEADLY, *calls])


@pytest.mark.parametrize(
    "moments",
    [
        ("child",),
        ("stored",),
        ("journal",),
        ("grandchild",),
        ("child", "grandchild"),
        ("child", "link", "linked", "adopted", "journal", "grandchild"),
        ("child", "done"),
        ("line",),
        ("line", "again", "peeked", "child"),
    ],
    ids="-".join,
)
def test_what_only_the_server_had_outlives_it(tmp_path: Path, moments: tuple[str, ...]) -> None:
    """A descriptor that the kernel has just made is nowhere else; the keeper hands it over."""
    path = description(tmp_path, "a")
    maps, runs = layout(1500)
    write_dump(tmp_path / "a" / "images", PID, runs)
    with Manager(path, pace=0.01, more=deaths(tmp_path, *moments)) as manager:
        task = start_task(tmp_path / "a" / "work", PID, "forks", maps=maps, runs=runs)
        assert result(task) == "right"
        assert manager.ended.wait(20)
        assert sorted(file.name for file in tmp_path.glob("killed-*")) == sorted(
            f"killed-{m}" for m in moments
        )
        assert (manager.status, manager.starts) == (0, 1 + len(moments))
        assert {name.split(".")[0] for name in manager.fds} <= {"criu", "orphan"}
        assert len(manager.fds) == 1  # CRIU's connection: systemd closes it when the service ends
    assert progress(path)[0]["error"] is None
    assert not path.with_suffix(".d").exists()


def test_a_child_whose_keeper_died_too_is_told_of(tmp_path: Path) -> None:
    """Also by every server that comes later."""
    path = description(tmp_path, "a")
    maps, runs = layout(1500)
    write_dump(tmp_path / "a" / "images", PID, runs)
    more = deaths(tmp_path, "child", "parent") + "\nkeeper._hand_over = lambda prefix: None"
    with Manager(path, pace=0.01, more=more) as manager:
        task = start_task(tmp_path / "a" / "work", PID, "forks", maps=maps, runs=runs)
        assert result(task) != "right"
        assert manager.ended.wait(20)
        assert manager.starts == 3
    assert progress(path)[0]["error"] == f"memory of a child was lost (task.0.{PID}.0)"


def test_without_a_keeper_the_memory_comes_all_the_same(tmp_path: Path) -> None:
    path = description(tmp_path, "a")
    maps, runs = layout(600)
    write_dump(tmp_path / "a" / "images", PID, runs)
    with Manager(path, more=f"{DEADLY}\nkeeper._SYS_CLONE = 1 << 20") as manager:  # ENOSYS
        task = start_task(tmp_path / "a" / "work", PID, "forks", maps=maps, runs=runs)
        assert result(task) == "right"
        assert manager.ended.wait(20)
        assert (manager.status, manager.starts) == (0, 1)


def test_a_page_that_nobody_asks_for_comes_too(tmp_path: Path) -> None:
    path = description(tmp_path, "a")
    maps, runs = layout(6000)
    write_dump(tmp_path / "a" / "images", PID, runs)
    with Manager(path) as manager:
        task = start_task(tmp_path / "a" / "work", PID, "after", maps=maps, runs=runs)
        assert manager.ended.wait(20)
        assert progress(path)[0]["faults"] == 0
        assert result(task, "\n") == "right"


@pytest.mark.parametrize("how", ["told", "late"])
def test_the_background_waits_until_the_container_answers(tmp_path: Path, how: str) -> None:
    """Before that the processors are needed to bring it back."""
    server = pageserver.Server(description(tmp_path, "a"))
    (container,) = server.containers
    container.work.mkdir(parents=True, exist_ok=True)
    assert not server._waiting()
    server._restored(container)
    assert server._waiting()
    assert not container.answers
    if how == "told":
        (container.work / ondemand.ANSWERS).touch()
    else:
        container.restored_ns -= pageserver.GRACE_NS
    assert not server._waiting()
    assert container.answers


def test_several_tasks_of_several_containers(tmp_path: Path) -> None:
    path = description(tmp_path, "a", "b", "c")
    maps, runs = layout(1500)
    tasks = []
    with Manager(path) as manager:
        for name, pid in (("a", 7), ("b", 8), ("c", 9)):
            write_dump(tmp_path / name / "images", pid, runs)
            tasks.append(start_task(tmp_path / name / "work", pid, "scattered", maps=maps, runs=runs))
        assert [result(task) for task in tasks] == ["right"] * 3
        assert manager.ended.wait(20)
        assert not [name for name in manager.fds if name.startswith("task")]
    assert [told["name"] for told in progress(path)] == ["a", "b", "c"]


def test_a_task_that_ends_early_ends_its_work(tmp_path: Path) -> None:
    path = description(tmp_path, "a")
    maps, runs = layout(60000)
    write_dump(tmp_path / "a" / "images", PID, runs)
    with Manager(path) as manager:
        task = start_task(tmp_path / "a" / "work", PID, "exit", maps=maps, runs=runs)
        assert result(task) == "right"
        assert manager.ended.wait(20)
        assert (manager.status, manager.starts) == (0, 1)


def test_a_dump_that_cannot_be_read_fails_the_restore(tmp_path: Path) -> None:
    """CRIU hears of it before the task runs, instead of a task that reads zeroes."""
    path = description(tmp_path, "a")
    maps, runs = layout(600)
    images = tmp_path / "a" / "images"
    write_dump(images, PID, runs)
    with (images / f"pages-{PID}.img").open("r+b") as f:
        f.truncate(100 * PAGE_BYTES)
    with Manager(path) as manager:
        task = start_task(tmp_path / "a" / "work", PID, "read", maps=maps, runs=runs, early=[runs[0][0]])
        assert manager.ended.wait(20)
        task.kill()
        assert result(task) != "right"
    assert "600" in str(progress(path)[0]["error"]) or "606" in str(progress(path)[0]["error"])


def test_a_restore_that_fails_ends_the_server(tmp_path: Path) -> None:
    path = description(tmp_path, "a")
    with Manager(path) as manager:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(tmp_path / "a" / "work" / "lazy-pages.socket"))
        assert manager.ended.wait(20)
        assert manager.status == 0
    assert progress(path)[0]["error"] == "CRIU ended before the restore was finished"


def test_a_fault_that_a_dead_server_had_read_is_answered(tmp_path: Path) -> None:
    """Nobody else hears of a fault that was read: whoever waits must be woken, to fault again."""
    path = description(tmp_path, "a")
    maps, runs = layout(6000)
    write_dump(tmp_path / "a" / "images", PID, runs)
    with Manager(path, pace=60) as manager:
        task = start_task(tmp_path / "a" / "work", PID, "looks", maps=maps, runs=runs)
        assert task.stdout is not None
        assert task.stdout.readline() == "first\n"
        manager.pause()
        assert task.stdin is not None
        task.stdin.write("\n")
        task.stdin.flush()
        fd = manager.fds[f"task.0.{PID}"]
        select.select([fd], [], [])
        message = userfaultfd.read(fd, memoryview(bytearray(32)))  # as the server did in its last moment
        assert message is not None
        manager.kill()
        assert task.stdout.readline() == "second\n"
        task.kill()
        task.communicate()


def test_a_page_that_cannot_be_read_is_no_page_of_zeroes(tmp_path: Path) -> None:
    path = description(tmp_path, "a")
    maps, runs = layout(600)
    images = tmp_path / "a" / "images"
    write_dump(images, PID, runs)
    with Manager(path, pace=60) as manager:
        task = start_task(tmp_path / "a" / "work", PID, "last", maps=maps, runs=runs)
        assert task.stdout is not None
        assert task.stdout.readline() == "first\n"
        os.truncate(images / f"pages-{PID}.img", 20 * PAGE_BYTES)
        task.communicate("\n", timeout=20)
        assert task.returncode == -signal.SIGBUS
        assert manager.starts == 1


@pytest.mark.parametrize(
    ("answers", "passed"),
    [
        ([errno.ENOENT, errno.EAGAIN], 0),  # a mapping that moves: its event has to be read first
        ([errno.ENOENT, errno.ENOENT], 1),  # no mapping
        ([errno.ENOENT, None], 1),
        ([errno.EAGAIN], 0),
        ([errno.ENOMEM], 0),
        ([errno.EEXIST], 1),
    ],
)
def test_a_page_counts_only_when_nothing_is_left_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: list[int | None], passed: int
) -> None:
    left = list(answers)

    def copy(_fd: int, _address: int, _source: int, length: int) -> int:
        if (number := left.pop(0)) is not None:
            raise OSError(number, "")
        return length

    monkeypatch.setattr(userfaultfd, "copy", copy)
    monkeypatch.setattr(userfaultfd, "wake", lambda *_: None)
    fd = os.eventfd(0)
    file = tmp_path / "pages"
    file.write_bytes(bytes(PAGE_BYTES))
    task = Task("t", fd, Layout(()), PagesFile(file), 1, Journal(tmp_path, "t", 1), lambda *_: None)
    assert task.fill(BASE, 0, 1) == passed
    assert not left
    assert not task.gone
    os.close(fd)


def test_nobody_copies_while_messages_are_read() -> None:
    gate = Gate()
    copying, reading, seen = [0], [0], []
    rounds = 300

    def copy() -> None:
        for _ in range(rounds):
            with gate.shared():
                copying[0] += 1
                time.sleep(0)
                seen.append(reading[0])
                copying[0] -= 1

    def read() -> None:
        for _ in range(rounds):
            with gate.alone():
                reading[0] += 1
                time.sleep(0)
                seen.append(copying[0] + reading[0] - 1)
                reading[0] -= 1

    threads = [threading.Thread(target=work) for work in (copy, copy, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [0] * 4 * rounds
