# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.frames``: real processes, and what EROFS's own program reads through the map."""

import ctypes
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders.frames import LIBC, PAGE, Physical, contents_of, frames_of, stopped, write_pagemap
from builders.memory import Child, private

from memfs.frames import Piece
from memfs.ranges import Range
from upgrade.dump.frames import SPARE_LINKS, Frames, Kept, prepare
from upgrade.errors import UpgradeError

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN"),
    pytest.mark.filterwarnings("ignore:label:DeprecationWarning"),  # pycriu under protobuf 6
]
PAGES = 256  # in a MiB


@pytest.fixture
def physical(tmp_path: Path) -> Physical:
    return Physical(tmp_path / "root")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def at(area: mmap.mmap) -> int:
    return int(np.frombuffer(area, np.uint8).ctypes.data)


def touch(area: mmap.mmap, step: int = 1) -> int:
    """Write to pages of an area; return its address."""
    for page in range(0, len(area), step * PAGE):
        area[page] = (area[page] + 1) % 256
    return at(area)


def remap(area: mmap.mmap) -> int:
    """Have the same contents in other frames, at the same place."""
    LIBC.mremap.restype = ctypes.c_void_p
    other = keep(private(len(area) >> 20))
    other[:] = area[:]
    target = at(area)
    LIBC.mremap(ctypes.c_void_p(at(other)), len(area), len(area), 3, ctypes.c_void_p(target))
    return target


def test_pages_of_a_task_are_found_wherever_they_lie(
    physical: Physical, tmp_path: Path, scratch: Path
) -> None:
    with Child(lambda: touch(keep(private(4)))) as child:
        address = int(child.go())
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        runs = [(address, 1), (address + 2 * PAGE, 700), (address + 900 * PAGE, 124)]
        blocks = sorted(physical.see(child.pid, address, 4 * PAGES))
        span = physical.online(blocks[: len(blocks) // 2 + 1])
        container = stopped(tmp_path / "c", child.pid)
        write_pagemap(container.directory, str(child.pid), 1, runs)
        outside = sum(
            not (physical.state / f"memory{pfn * PAGE // (1 << 20)}").exists()
            for start, pages in runs
            for pfn in frames_of(child.pid, start, pages)
        )
        with Frames(physical.host, (span,), tmp_path / "frames") as frames:
            assert frames.capture([container]) == {0: Kept(True, 825, 0, outside, ("pages-1.img",))}
            assert not frames.moved()
        found = physical.read_back(tmp_path / "frames", [span], scratch)
        assert found == {"0-pages-1.img": b"".join(contents_of(child.pid, *run) for run in runs)}
        assert not list(container.directory.glob("pages-*"))
        os.kill(child.pid, signal.SIGCONT)


KEPT: list[mmap.mmap] = []


def keep(area: mmap.mmap) -> mmap.mmap:
    """Keep memory of a child (only there)."""
    KEPT.append(area)
    return area


def test_frames_shared_by_fork_are_copied_once(physical: Physical, tmp_path: Path, scratch: Path) -> None:
    area = private(1)
    with Child(lambda: touch(area, 2)) as child:
        address = int(child.go())  # every second page is the child's own now

        def look() -> tuple[list[int], list[int]]:
            return frames_of("self", address, PAGES), frames_of(child.pid, address, PAGES)

        elsewhere = private(1)
        span = physical.online(physical.see("self", at(elsewhere), PAGES), 2)
        container = stopped(tmp_path / "c", os.getpid(), child.pid)
        with Frames(physical.host, (span,), tmp_path / "frames") as frames:
            for _ in range(10):  # until the kernel has moved none of them meanwhile
                ours, theirs = look()
                physical.see("self", address, PAGES)
                physical.see(child.pid, address, PAGES)
                write_pagemap(container.directory, str(os.getpid()), 1, [(address, PAGES)])
                write_pagemap(container.directory, str(child.pid), 2, [(address, PAGES)])
                kept = frames.capture([container])[0]
                if look() == (ours, theirs):
                    break
                frames.files.clear()
            assert frames.made is not None
            outside = {p for p in ours + theirs if not (physical.state / f"memory{p * PAGE >> 20}").exists()}
            assert len(frames.made.copies.blocks) == len(outside)
        shared = sum(a == b for a, b in zip(ours, theirs, strict=True))
        assert shared >= PAGES // 2
        assert (kept.pages, kept.shared) == (2 * PAGES, shared)
        found = physical.read_back(tmp_path / "frames", [span], scratch)
        assert found["0-pages-1.img"] == contents_of("self", address, PAGES)
        assert found["0-pages-2.img"] == contents_of(child.pid, address, PAGES)
        assert found["0-pages-1.img"] != found["0-pages-2.img"]


def test_memory_that_its_task_may_not_touch(physical: Physical, tmp_path: Path, scratch: Path) -> None:
    area = private(1)
    area[:] = os.urandom(len(area))
    expected = area[:]

    def lock() -> int:
        address = touch(area, PAGES)
        assert LIBC.mprotect(ctypes.c_void_p(address), len(area), 0) == 0
        return address

    with Child(lock) as child:
        address = int(child.go())
        blocks = sorted(physical.see(child.pid, address, PAGES))
        span = physical.online(blocks[:1])
        container = stopped(tmp_path / "c", child.pid)
        write_pagemap(container.directory, str(child.pid), 1, [(address, PAGES)])
        with Frames(physical.host, (span,), tmp_path / "frames") as frames:
            frames.capture([container])
        found = physical.read_back(tmp_path / "frames", [span], scratch)["0-pages-1.img"]
        assert found[1:] == expected[1:]


@pytest.mark.parametrize("inside", ["before and after", "before", "after"])
def test_pages_that_move_are_found_again(
    physical: Physical, tmp_path: Path, scratch: Path, inside: str
) -> None:
    area = private(1)
    with Child(lambda: touch(area), lambda: remap(area)) as child:
        address = int(child.go())
        expected = contents_of(child.pid, address, PAGES)
        before = frames_of(child.pid, address, PAGES)
        blocks = physical.see(child.pid, address, PAGES)
        target = tmp_path / "frames"
        container = stopped(tmp_path / "c", child.pid)
        write_pagemap(container.directory, str(child.pid), 1, [(address, PAGES)])
        probe = private(1)  # somewhere in memory that is neither
        other = physical.see("self", at(probe), PAGES) - blocks
        if inside == "after":
            if not other:
                pytest.skip("all memory lies in the same blocks")
            blocks = other
        span = physical.online(blocks)
        with Frames(physical.host, (span,), target) as frames:
            frames.capture([container])
            assert not frames.moved()
            child.go()
            assert not set(before) & set(frames_of(child.pid, address, PAGES))
            # what was copied is right wherever the original goes
            assert frames.moved() == any(p * PAGE >> 20 in blocks for p in before)
            assert not frames.moved()
        physical.held = dict.fromkeys(before, b"?" * PAGE)  # whatever lies there now
        physical.see(child.pid, address, PAGES)
        assert physical.read_back(target, [span], scratch) == {"0-pages-1.img": expected}


def test_frames_that_leave_a_full_range_are_an_error(physical: Physical, tmp_path: Path) -> None:
    area = private(1)
    address = touch(area)
    span = physical.online(physical.see("self", address, PAGES))
    container = stopped(tmp_path / "c", os.getpid())
    write_pagemap(container.directory, str(os.getpid()), 1, [(address, PAGES)])
    with Frames(physical.host, (span,), tmp_path / "frames") as frames:
        frames.capture([container])
        frames.pieces = [Piece(Range(PAGE, PAGE), 100)]  # as if all of them lay elsewhere now
        frames.gap_bytes = 10 * PAGE
        with pytest.raises(UpgradeError, match="moved out of the ranges"):
            frames.moved()


def test_several_ranges_are_one_device(physical: Physical, tmp_path: Path, scratch: Path) -> None:
    area = private(8)
    with Child(lambda: touch(area)) as child:
        address = int(child.go())
        blocks = sorted(physical.see(child.pid, address, 8 * PAGES))
        gaps = [i for i in range(1, len(blocks)) if blocks[i] - blocks[i - 1] > 6]
        if not gaps:
            pytest.skip("all of it lies together")
        spans = [physical.online(blocks[: gaps[0]], 4), physical.online(blocks[gaps[0] :], 4)]
        container = stopped(tmp_path / "c", child.pid)
        write_pagemap(container.directory, str(child.pid), 1, [(address, 8 * PAGES)])
        for order in (spans, spans[::-1]):
            with Frames(physical.host, order, tmp_path / "frames") as frames:
                (container.directory / "pages-1.img").unlink(missing_ok=True)
                (container.directory / "pages-1.img").symlink_to("/dev/null")
                assert frames.capture([container])[0] == Kept(True, 8 * PAGES, 0, 0, ("pages-1.img",))
            found = physical.read_back(tmp_path / "frames", order, scratch)
            assert found == {"0-pages-1.img": contents_of(child.pid, address, 8 * PAGES)}


def test_a_container_outside_of_the_range_is_copied(
    physical: Physical, tmp_path: Path, scratch: Path
) -> None:
    area, other = private(2), private(1)
    with Child(lambda: touch(area)) as inside, Child(lambda: touch(other)) as outside:
        here, there = int(inside.go()), int(outside.go())
        blocks = physical.see(inside.pid, here, 2 * PAGES) - physical.see(outside.pid, there, PAGES)
        if len(blocks) < 1:
            pytest.skip("both lie in the same blocks")
        span = physical.online(blocks, 4)
        good, bad = stopped(tmp_path / "0", inside.pid), stopped(tmp_path / "1", outside.pid, number=1)
        pages = [
            (here + n * PAGE, 1)
            for n, p in enumerate(frames_of(inside.pid, here, 2 * PAGES))
            if p * PAGE >> 20 in blocks
        ]
        write_pagemap(good.directory, str(inside.pid), 1, pages)
        write_pagemap(bad.directory, str(outside.pid), 3, [(there, PAGES)] * 6)
        with Frames(physical.host, (span,), tmp_path / "frames") as frames:
            frames.gap_bytes = 10 * PAGE  # no room for it
            assert frames.capture([good, bad]) == {
                0: Kept(True, len(pages), 0, 0, ("pages-1.img",)),
                1: Kept(in_place=False),
            }
            assert not frames.moved()
        assert (bad.directory / "pages-3.img").read_bytes() == contents_of(outside.pid, there, PAGES) * 6
        found = physical.read_back(tmp_path / "frames", [span], scratch)
        assert found == {"0-pages-1.img": b"".join(contents_of(inside.pid, *run) for run in pages)}


def test_a_map_without_room_for_anything(physical: Physical, tmp_path: Path, scratch: Path) -> None:
    area = private(1)
    address = touch(area)
    span = physical.online(physical.see("self", address, PAGES))
    container = stopped(tmp_path / "c", os.getpid())
    write_pagemap(container.directory, str(os.getpid()), 1, [(address, PAGES)] * 8)
    with Frames(physical.host, (span,), tmp_path / "frames") as frames:
        frames.gap_bytes = 5 * PAGE  # for the index of a page's worth of pages, no more
        assert frames.capture([container]) == {0: Kept(in_place=False)}
        assert not frames.moved()
    assert (container.directory / "pages-1.img").read_bytes() == area[:] * 8
    assert physical.read_back(tmp_path / "frames", [span], scratch) == {}


def test_what_criu_itself_wrote_stays(physical: Physical, tmp_path: Path, scratch: Path) -> None:
    area = private(1)
    address = touch(area)
    span = physical.online(physical.see("self", address, PAGES))
    container = stopped(tmp_path / "c", os.getpid())
    prepare(container.directory, 1)
    write_pagemap(container.directory, str(os.getpid()), SPARE_LINKS + 2, [(address, 3)], link=False)
    real = container.directory / f"pages-{SPARE_LINKS + 2}.img"
    real.write_bytes(b"CRIU's")
    with Frames(physical.host, (span,), tmp_path / "frames") as frames:
        assert frames.capture([container])[0].files == ()
    assert [p.name for p in container.directory.glob("pages-*")] == [real.name]
    assert real.read_bytes() == b"CRIU's"
    assert physical.read_back(tmp_path / "frames", [span], scratch) == {}


def test_an_error_leaves_no_file_open(physical: Physical, tmp_path: Path) -> None:
    """Or range M could not be unmounted on the way out."""
    area = private(1)
    address = touch(area)
    span = physical.online(physical.see("self", address, PAGES))
    gone = 1 << 16  # nothing is ever mapped as low
    container = stopped(tmp_path / "c", os.getpid())
    write_pagemap(container.directory, str(os.getpid()), 1, [(address, 5), (gone, 1)])
    target = tmp_path / "frames"
    with (
        pytest.raises(UpgradeError, match=f"{gone:#x}") as caught,
        Frames(physical.host, (span,), target) as frames,
    ):
        frames.capture([container])
    assert caught.tb is not None  # the error is still there
    assert str(target) not in Path("/proc/self/maps").read_text()
    assert not [fd for fd in os.listdir("/proc/self/fd") if _target(fd) == str(target)]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 512 KiB."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


@pytest.mark.parametrize(
    ("gap_blocks", "message"),
    [(5, "do not fit on the range for metadata"), (None, "frame map with .* copied pages")],
)
def test_without_room_to_copy_to_nothing_goes_on(
    physical: Physical, small: Path, gap_blocks: int | None, message: str
) -> None:
    area = private(2)
    address = touch(area)
    lowest = min(physical.see("self", address, 2 * PAGES))
    span = physical.online([lowest - 1])  # nothing of ours lies there
    container = stopped(small / "c", os.getpid())
    write_pagemap(container.directory, str(os.getpid()), 1, [(address, 2 * PAGES)])
    with Frames(physical.host, (span,), small / "frames") as frames:
        if gap_blocks is not None:
            frames.gap_bytes = gap_blocks * PAGE
        with pytest.raises(UpgradeError, match=message):
            frames.capture([container])


def test_ranges_that_are_no_longer_online_are_an_error(physical: Physical, tmp_path: Path) -> None:
    span = physical.online([64])
    (physical.state / "memory64/state").write_text("offline\n")
    with pytest.raises(UpgradeError, match="online"):
        Frames(physical.host, (span,), tmp_path / "frames")


def test_nothing_is_kept_without_a_range(physical: Physical, tmp_path: Path) -> None:
    with Frames(physical.host, (), tmp_path / "frames") as frames:
        assert not frames.moved()
