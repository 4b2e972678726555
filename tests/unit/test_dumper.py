# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.dumper``: all CRIUs are held at post-dump, and let go by a failure answer."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders.criu import FakeCriu
from builders.host import Machine

from upgrade.config import Config
from upgrade.dump.dumper import LOG, Dumps
from upgrade.dump.parent import FEW_BYTES, NAME
from upgrade.engines.base import Container, Images
from upgrade.engines.cgroup import CgroupEngine
from upgrade.errors import UpgradeError

HELD = (["notify", "pre-dump", 0], ["notify", "post-dump", 500], ["answer", {"success": False}])


class Engine(CgroupEngine):
    """Writes down for whom it was asked."""

    def prepare_images(self, container: Container, images: Images) -> None:
        (images.directory / "beside").write_text(container.name)


def container(number: int) -> Container:
    return Container(f"/c{number}", "cgroup", f"/c{number}", 500 + number, host_pids=True, host_network=True)


@pytest.fixture
def dumps(machine: Machine, criu: FakeCriu) -> Iterator[Dumps]:
    found = Dumps(machine.host, Config(dump_timeout_seconds=5.0))
    yield found
    found.abort()


def prepare(dumps: Dumps, directory: Path, count: int = 2) -> list[Images]:
    engine = Engine(dumps.host)
    return [
        dumps.prepare(engine, container(n), directory / f"container-{n}", in_place=False)
        for n in range(count)
    ]


def ended(dumps: Dumps) -> bool:
    return all(dump.criu.process.poll() is not None for dump in dumps.dumps)


def test_all_are_held_and_nobody_is_answered(dumps: Dumps, criu: FakeCriu, tmp_path: Path) -> None:
    criu.on("DUMP", *HELD)
    prepare(dumps, tmp_path)
    dumps.start()
    dumps.wait_until_held()
    assert [dump.held for dump in dumps.dumps] == [True, True]
    assert dumps.still_held()
    time.sleep(0.1)
    assert "post-dump" not in criu.answers()
    assert not ended(dumps)
    dumps.abort()
    assert criu.answers() == {"pre-dump": True, "post-dump": False}
    assert ended(dumps)
    assert not dumps.still_held()
    assert [dump.error for dump in dumps.dumps] == [None, None]


def test_criu_is_asked_for_what_a_jump_needs(dumps: Dumps, criu: FakeCriu, tmp_path: Path) -> None:
    criu.on("DUMP", *HELD)
    (images,) = prepare(dumps, tmp_path, 1)
    assert (images.directory / "beside").read_text() == "/c0"
    dumps.start()
    dumps.wait_until_held()
    options = criu.options("DUMP")
    assert options.pid == 500
    assert options.notify_scripts
    assert options.tcp_established
    assert options.link_remap  # of the engine
    assert options.freeze_cgroup == "/sys/fs/cgroup/c0"
    assert options.network_lock == dumps.dumps[0].criu.rpc.SKIP
    assert not options.leave_running
    assert not options.leave_stopped


@pytest.mark.parametrize("answer", [{"success": False}, {"mem_track": False}])
def test_a_criu_that_cannot_tell_what_changed_dumps_everything(
    dumps: Dumps, criu: FakeCriu, answer: dict[str, bool]
) -> None:
    criu.on("FEATURE_CHECK", ["answer", {"mem_track": False} | answer])
    assert not dumps.tracks_memory


@pytest.mark.parametrize("tracks", [True, False])
def test_what_did_not_change_is_left_out_if_the_kernel_can_tell(
    dumps: Dumps, machine: Machine, criu: FakeCriu, tmp_path: Path, tracks: bool
) -> None:
    criu.on("FEATURE_CHECK", ["answer", {"mem_track": tracks}])
    criu.on("DUMP", *HELD)
    machine.cgroup("/c0", [500])
    machine.process(500, status=f"NSpid:\t500\nRssAnon:\t{FEW_BYTES >> 10} kB\nVmSwap:\t0 kB")
    machine.file("/proc/500/clear_refs", "")
    images = dumps.prepare(Engine(dumps.host), container(0), tmp_path / "images", in_place=True)
    assert not (images.directory / NAME).exists()
    dumps.watch()
    assert machine.written("/proc/500/clear_refs") == ["4"] * tracks
    dumps.start()
    dumps.wait_until_held()
    options = criu.options("DUMP")
    assert (options.track_mem, options.parent_img) == ((True, NAME) if tracks else (False, ""))
    assert not (images.directory / NAME).exists()


def test_images_that_cannot_be_understood_end_the_dump(
    dumps: Dumps, machine: Machine, criu: FakeCriu, tmp_path: Path
) -> None:
    criu.on("FEATURE_CHECK", ["answer", {"mem_track": True}])
    criu.on("DUMP", ["write", "pagemap-500.img", "no pagemap"], *HELD)
    machine.cgroup("/c0", [500])
    machine.process(500, status=f"NSpid:\t500\nRssAnon:\t{FEW_BYTES >> 10} kB")
    machine.file("/proc/500/clear_refs", "")
    dumps.prepare(Engine(dumps.host), container(0), tmp_path / "images", in_place=True)
    dumps.watch()
    dumps.start()
    with pytest.raises(UpgradeError, match="is no pagemap"):
        dumps.wait_until_held()
    assert ended(dumps)


def test_criu_is_started_before_the_freeze_and_ends_unused(
    dumps: Dumps, criu: FakeCriu, tmp_path: Path
) -> None:
    prepare(dumps, tmp_path)
    deadline = time.monotonic() + 5
    while len(criu.seen()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(criu.seen()) == 2
    dumps.abort()
    assert ended(dumps)
    assert not any("request" in note for note in criu.seen())


def test_the_descriptors_of_a_dump_are_closed(dumps: Dumps, criu: FakeCriu, tmp_path: Path) -> None:
    def open_files() -> set[str]:
        links = Path("/proc/self/fd").iterdir()
        return {str(link.readlink()) for link in list(links) if link.is_symlink()}

    criu.on("DUMP", *HELD)
    (images,) = prepare(dumps, tmp_path, 1)
    dumps.start()
    dumps.wait_until_held()
    assert str(images.directory) in open_files()
    dumps.abort()
    assert str(images.directory) not in open_files()


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([["answer", {"success": False, "message": "Can't do that"}]], "Can't do that"),
        ([["notify", "pre-dump", 0], ["die", 3]], "status 3"),
        (
            [["write", LOG, "(00.1) Error (criu/a.c:1): first\n"], ["answer", {"success": False}]],
            "Error (criu/a.c:1): first",
        ),
    ],
)
def test_a_failure_names_its_container(
    dumps: Dumps, criu: FakeCriu, tmp_path: Path, steps: list[list[Any]], reason: str
) -> None:
    criu.on("DUMP", *steps)
    prepare(dumps, tmp_path, 1)
    dumps.start()
    with pytest.raises(UpgradeError) as caught:
        dumps.wait_until_held()
    assert caught.value.subject == "/c0"
    assert reason in caught.value.message
    assert not dumps.still_held()


def test_one_failure_does_not_wait_for_the_others(dumps: Dumps, criu: FakeCriu, tmp_path: Path) -> None:
    criu.on("DUMP", ["sleep", 0.6], *HELD)
    prepare(dumps, tmp_path, 1)
    dumps.start()
    deadline = time.monotonic() + 5
    while not any("request" in note for note in criu.seen()) and time.monotonic() < deadline:
        time.sleep(0.01)  # the first has read what it has to do
    criu.on("DUMP", ["answer", {"success": False, "message": "no"}])
    dumps.prepare(Engine(dumps.host), container(1), tmp_path / "container-1", in_place=False)
    dumps.dumps[1].start()
    started = time.monotonic()
    with pytest.raises(UpgradeError, match=r"/c1: CRIU cannot dump it: .*no"):
        dumps.wait_until_held()
    assert time.monotonic() - started < 0.5
    dumps.abort()
    assert ended(dumps)


def test_a_dump_that_takes_too_long_names_who_is_late(
    machine: Machine, criu: FakeCriu, tmp_path: Path
) -> None:
    dumps = Dumps(machine.host, Config(dump_timeout_seconds=0.2))
    criu.on("DUMP", ["sleep", 0.7], *HELD)
    prepare(dumps, tmp_path)
    dumps.start()
    with pytest.raises(UpgradeError) as caught:
        dumps.wait_until_held()
    assert (caught.value.subject, caught.value.message) == ("/c0, /c1", "the dump took longer than 0.2 s")
    dumps.abort()
    assert ended(dumps)
    assert criu.answers()["post-dump"] is False


def test_a_dump_that_was_not_held_is_none(dumps: Dumps, criu: FakeCriu, tmp_path: Path) -> None:
    """CRIU ends the tasks after a success that nobody held: their memory must not be jumped with."""
    criu.on("DUMP", ["answer", {"success": True}])
    prepare(dumps, tmp_path, 1)
    dumps.start()
    with pytest.raises(UpgradeError, match="/c0"):
        dumps.wait_until_held()


def test_a_criu_that_ends_while_it_is_held_is_noticed(dumps: Dumps, criu: FakeCriu, tmp_path: Path) -> None:
    criu.on("DUMP", *HELD)
    prepare(dumps, tmp_path)
    dumps.start()
    dumps.wait_until_held()
    dumps.dumps[1].criu.process.kill()
    dumps.dumps[1].criu.process.wait()
    assert not dumps.still_held()
    dumps.abort()
    assert ended(dumps)


def test_images_are_nobody_else_s(dumps: Dumps, criu: FakeCriu, tmp_path: Path) -> None:
    for images in prepare(dumps, tmp_path):
        assert images.directory.stat().st_mode & 0o077 == 0
    with pytest.raises(FileExistsError):
        dumps.prepare(Engine(dumps.host), container(0), tmp_path / "container-0", in_place=False)


def test_no_thread_is_left(dumps: Dumps, criu: FakeCriu, tmp_path: Path) -> None:
    criu.on("DUMP", *HELD)
    prepare(dumps, tmp_path)
    before = threading.active_count()
    dumps.start()
    dumps.wait_until_held()
    assert threading.active_count() == before + 2
    dumps.abort()
    dumps.abort()
    assert threading.active_count() == before
