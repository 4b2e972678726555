# SPDX-License-Identifier: MIT
"""Tests of ``memfs.gather`` and what it needs: real processes, a real swap device, made-up trees of sysfs."""

import ctypes
import itertools
import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders.memory import ZRAM, Child, digest, private, shared, zram
from numpy.typing import NDArray

from memfs import calls, gather, hotplug, pagemap, residency, room, store, stragglers, swap
from memfs.pagemap import PAGE_BYTES
from memfs.ranges import Range
from memfs.room import Block

CAN_SWAP = pytest.mark.skipif(
    os.geteuid() != 0 or not (ZRAM / "hot_add").exists(), reason="needs root and a kernel with zram"
)
STEP = 1 << 20
MADV_POPULATE_WRITE = 23  # include/uapi/asm-generic/mman-common.h
MIB_PAGES = (1 << 20) // PAGE_BYTES
END = 1 << 46


@pytest.fixture
def device() -> Iterator[Path]:
    with zram(64) as made:
        with swap.swap(made):
            yield made


def elsewhere(*pids: int) -> list[Range]:
    """Return all physical memory but the frames that some processes have now: what stands for the range."""
    taken = np.flatnonzero(residency.survey(pids, []).frames).tolist()
    edges = [0, *taken, END // PAGE_BYTES]
    return [
        Range((before + 1) * PAGE_BYTES, (after - before - 1) * PAGE_BYTES)
        for before, after in itertools.pairwise(edges)
        if after - before > 1
    ]


@pytest.fixture
def other_frames(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the frames that a step frees: without ZONE_MOVABLE the kernel would hand out the same ones again."""
    hogs = []
    touch = calls.touch

    def after_others(pid: int, addresses: NDArray[np.uint64]) -> int:
        if len(addresses):
            hog = mmap.mmap(-1, 8 * STEP, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            hog.madvise(mmap.MADV_NOHUGEPAGE)
            hog.madvise(MADV_POPULATE_WRITE)
            hogs.append(hog)
        return touch(pid, addresses)

    monkeypatch.setattr(calls, "touch", after_others)
    # each processor has a list of its own of free frames
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    yield
    os.sched_setaffinity(0, processors)


@CAN_SWAP
def test_pages_move_and_keep_their_contents(device: Path, other_frames: None) -> None:
    areas: list[mmap.mmap] = []

    def fill() -> str:
        areas.append(private(16))
        return digest(areas[0])

    with Child(fill, lambda: digest(areas[0])) as child:
        before = child.go()
        reports: list[tuple[int, int]] = []
        done = gather.gather(
            [child.pid],
            elsewhere(child.pid),
            step_bytes=STEP,
            progress=lambda *report: reports.append(report),
        )
        assert child.go() == before
    assert done.before.in_place == 0
    assert done.before.outside >= 16 * MIB_PAGES
    # some come back in a frame that another page has left just now
    assert done.moved > 4 * MIB_PAGES
    assert done.after.in_place > 4 * MIB_PAGES
    assert done.after.swapped == 0
    assert sum(done.left.values()) == done.after.outside
    # the interpreter's own pages are shared with its parent
    assert done.left[stragglers.SHARED] > 0
    assert done.steps == len(reports) >= 16
    assert 0 < done.longest_step_ns < done.duration_ns
    assert [report[0] for report in reports] == sorted(report[0] for report in reports)
    (total,) = {report[1] for report in reports}
    assert total >= done.before.outside * PAGE_BYTES  # and what nobody has mapped


@CAN_SWAP
def test_what_lies_in_the_range_is_not_touched(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "process_madvise", lambda *_: pytest.fail("paged out"))
    with Child(lambda: private(2)) as child:
        child.go()
        done = gather.gather([child.pid], [Range(0, END)])
    assert done.moved == done.steps == done.after.outside == 0
    assert done.left == {}


def frames(area: mmap.mmap) -> pagemap.Pfns:
    """Return the frames of shared memory and let it go from this process's page tables again."""
    view = np.frombuffer(area, np.uint8)
    assert view[::PAGE_BYTES].sum() >= 0  # read every page
    found = pagemap.pfns(Path("/proc/self/pagemap"), int(view.ctypes.data), len(view) // PAGE_BYTES)
    area.madvise(mmap.MADV_DONTNEED)
    return found


@CAN_SWAP
def test_shared_memory_of_one_process_moves_by_swap_that_of_two_in_huge_pages(
    device: Path, other_frames: None
) -> None:
    alone, both = shared(4), shared(4)
    sums = digest(alone), digest(both)
    before = frames(alone), frames(both)

    def touch_both() -> int:
        return sum(alone[::PAGE_BYTES]) + sum(both[::PAGE_BYTES])

    with Child(touch_both) as one, Child(lambda: sum(both[::PAGE_BYTES])) as two:
        one.go(), two.go()
        done = gather.gather([one.pid, two.pid], elsewhere(one.pid, two.pid), step_bytes=STEP)
        after = frames(alone), frames(both)
    assert (digest(alone), digest(both)) == sums
    assert len(pagemap.changed(before[0], after[0])) > 2 * MIB_PAGES
    moved = len(pagemap.changed(before[1], after[1]))
    # whole huge pages, if its address is theirs and there are any; of single ones up to 6 were seen, why is not known
    assert moved % (2 * MIB_PAGES) < 64
    assert done.left[stragglers.SHARED] >= 4 * MIB_PAGES - moved


@CAN_SWAP
def test_untouched_shared_memory_moves_through_a_mapping_of_our_own(device: Path, other_frames: None) -> None:
    fd = os.memfd_create("untouched")
    os.write(fd, os.urandom(4 << 20))
    os.truncate(fd, 64 << 20)
    with mmap.mmap(fd, 0) as view:
        before = digest(view)
        view.madvise(mmap.MADV_DONTNEED)
        allocated = os.fstat(fd).st_blocks  # the reading filled the holes
    hollow = os.memfd_create("hollow")
    os.truncate(hollow, 64 << 20)
    os.pwrite(hollow, b"x" * (1 << 20), 32 << 20)
    with Child(lambda: (mmap.mmap(fd, 0), mmap.mmap(hollow, 0))) as child:
        already = residency.survey([child.pid], []).unmapped
        child.go()
        assert residency.survey([child.pid], []).unmapped >= already + 64 * MIB_PAGES
        done = gather.gather([child.pid], [Range(END, PAGE_BYTES)], step_bytes=STEP)
        assert done.steps
        with mmap.mmap(fd, 0) as view:
            assert digest(view) == before
    assert os.fstat(fd).st_blocks == allocated
    assert os.fstat(hollow).st_blocks * 512 == 1 << 20  # holes are still holes
    os.close(fd)
    os.close(hollow)


@CAN_SWAP
def test_what_fork_shares_is_still_shared_when_it_is_brought_back(device: Path) -> None:
    areas: list[mmap.mmap] = []

    def make() -> int:
        areas.append(private(2))
        view = np.frombuffer(areas[0], np.uint8)
        return int(view.ctypes.data)

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        return pid

    with Child(make, fork) as child:
        base = int(child.go())
        run = np.array([[base, 2 << 20]], np.uint64)
        pidfd = os.pidfd_open(child.pid)
        calls.process_madvise(pidfd, run, calls.MADV_PAGEOUT)
        os.close(pidfd)
        other = int(child.go())
        try:
            assert np.count_nonzero(frames_of(other, base) == 0) >= MIB_PAGES
            for pid in (child.pid, other):
                assert calls.touch(pid, residency.addresses(run)) == 2 * MIB_PAGES
            assert frames_of(other, base).all()
            assert (frames_of(other, base) == frames_of(child.pid, base)).all()
        finally:
            os.kill(other, signal.SIGKILL)


def frames_of(pid: int, address: int) -> NDArray[np.uint64]:
    """Return the frames of 2 MiB of a process."""
    with open(f"/proc/{pid}/pagemap", "rb") as f:
        return pagemap.pfns_of_runs(f.fileno(), [(address, 2 * MIB_PAGES)])


def test_touch_leaves_out_what_cannot_be_read() -> None:
    area = mmap.mmap(-1, 4 * PAGE_BYTES)
    base = int(np.frombuffer(area, np.uint8).ctypes.data)
    wanted = np.array([4096, base, base + PAGE_BYTES, base + 3 * PAGE_BYTES], np.uint64)
    assert calls.touch(os.getpid(), wanted) == 3
    with Child() as gone:
        pass
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        calls.touch(gone.pid, wanted)


def test_ksm_is_believed_of_processes_that_it_has_merged_only(tmp_path: Path) -> None:
    flags = np.zeros(512, np.uint64)
    flags[[1, 2]] = 1 << 21
    flags[3] = 1 << 18
    (tmp_path / "kpageflags").write_bytes(flags.tobytes())
    frames = np.array([0, 1, 2, 3], np.uint64)
    merged = np.array([False, True, False, False])
    assert stragglers.can_swap(frames, merged, tmp_path).tolist() == [True, False, True, False]
    for pid, pages in ((1, "0"), (2, "7")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "ksm_merging_pages").write_text(f"{pages}\n")
    assert [stragglers.is_merged(pid, tmp_path) for pid in (1, 2, 3)] == [False, True, False]


@CAN_SWAP
def test_locked_pages_stay(device: Path, other_frames: None) -> None:
    def lock() -> object:
        area = private(2)
        view = np.frombuffer(area, np.uint8)
        assert ctypes.CDLL(None).mlock(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view))) == 0
        return area, view

    with Child(lock) as child:
        child.go()
        done = gather.gather([child.pid], elsewhere(child.pid), step_bytes=STEP)
    # some wait in lists of the processors to be marked as locked: mm/mlock.c, mlock_folio()
    assert done.left[stragglers.LOCKED] >= MIB_PAGES


@CAN_SWAP
def test_a_full_range_ends_it(device: Path) -> None:
    with Child(lambda: private(32)) as child:
        child.go()
        done = gather.gather([child.pid], [Range(END, PAGE_BYTES)], step_bytes=STEP // 2)
    assert done.moved == 0
    assert done.left[stragglers.NO_ROOM] >= 32 * MIB_PAGES
    # Half of the 64 steps that the area would take are never made. Pages that fork shares with this process, which may
    # come first, take steps of their own that say nothing, and so do those of which the kernel paged little out.
    assert done.steps < done.before.outside // (STEP // 2 // PAGE_BYTES) - 32


@CAN_SWAP
def test_no_more_is_moved_than_wanted(device: Path, other_frames: None) -> None:
    with Child(lambda: private(16)) as child:
        child.go()
        done = gather.gather([child.pid], elsewhere(child.pid), step_bytes=STEP, limit_bytes=STEP)
    assert MIB_PAGES <= done.moved < 2 * MIB_PAGES
    assert done.left[stragglers.LIMIT] >= 8 * MIB_PAGES


@CAN_SWAP
def test_processes_that_may_not_swap_are_left_alone(device: Path, other_frames: None) -> None:
    with Child(lambda: private(2)) as child:
        child.go()
        done = gather.gather([child.pid], elsewhere(child.pid), swapless=[child.pid])
    assert done.steps == 0
    assert done.left[stragglers.NO_SWAP] >= 2 * MIB_PAGES


@CAN_SWAP
def test_a_process_that_is_gone_is_left_out(device: Path) -> None:
    with Child() as gone:
        pass
    assert gather.gather([gone.pid], []).before.pages == 0


@CAN_SWAP
def test_without_swap_nothing_moves() -> None:
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        pytest.skip("this machine swaps")
    with Child(lambda: private(2)) as child:
        child.go()
        done = gather.gather([child.pid], elsewhere(child.pid))
    # not ``moved``: pages of zeroes in a huge page that the kernel splits become the shared page of zeroes
    assert done.after.in_place == 0
    assert done.left[stragglers.BUSY] >= 2 * MIB_PAGES


@CAN_SWAP
def test_swap_is_there_for_a_while() -> None:
    with zram(16) as device:
        with swap.swap(device) as size:
            assert size == 16 << 20
            assert str(device) in Path("/proc/swaps").read_text()
            assert swap.is_ours(device)
        assert str(device) not in Path("/proc/swaps").read_text()
        assert store.is_blank(device)


@CAN_SWAP
def test_removing_swap_twice_is_harmless() -> None:
    with zram(16) as device:
        with swap.swap(device):
            swap.remove(device)
            assert str(device) not in Path("/proc/swaps").read_text()
            # nothing is left to do


def test_foreign_data_is_not_made_a_swap(tmp_path: Path) -> None:
    file = tmp_path / "device"
    file.write_bytes(b"somebody's" + bytes(1 << 20))
    with pytest.raises(store.ForeignData):
        with swap.swap(file):
            pytest.fail("made")
    swap.remove(file)
    assert file.read_bytes().startswith(b"somebody's")


def cgroups(root: Path) -> Path:
    for pid, cgroup in ((10, "/pods/a"), (11, "/pods/b"), (12, "/")):
        (root / f"proc/{pid}").mkdir(parents=True)
        (root / f"proc/{pid}/cgroup").write_text(f"1:name=systemd:/x\n0::{cgroup}\n")
    for cgroup, value in (("pods", "4096"), ("pods/a", "0"), ("pods/b", "max")):
        (root / swap.CGROUPS / cgroup).mkdir(parents=True, exist_ok=True)
        (root / swap.CGROUPS / cgroup / "memory.swap.max").write_text(f"{value}\n")
    return root


def test_limits_are_those_of_all_cgroups_above(tmp_path: Path) -> None:
    root = cgroups(tmp_path)
    outer, inner = (f"{swap.CGROUPS}/{name}/memory.swap.max" for name in ("pods", "pods/a"))
    assert swap.limits([10], root) == {inner: "0", outer: "4096"}
    assert swap.limits([11, 12, 99], root) == {outer: "4096"}


def test_limits_are_lifted_for_a_while(tmp_path: Path) -> None:
    root = cgroups(tmp_path)
    found = swap.limits([10, 11], root)
    with swap.lifted(found, root):
        assert swap.limits([10, 11], root) == {}
    assert swap.limits([10, 11], root) == found
    swap.restore({f"{swap.CGROUPS}/gone/memory.swap.max": "0"}, root)


BLOCK = 128 << 20
BLOCK_PAGES = BLOCK // PAGE_BYTES


def memory(root: Path, *free: int, zones: str = "Movable") -> list[Range]:
    """Make memory blocks with so many free pages each, behind one that does not belong to the range."""
    base = root / hotplug.MEMORY
    base.mkdir(parents=True)
    (base / "block_size_bytes").write_text("8000000\n")
    flags = np.zeros((len(free) + 1, BLOCK_PAGES), np.uint64)
    for number, pages in enumerate((0, *free)):
        (base / f"memory{number}").mkdir()
        (base / f"memory{number}/state").write_text("online\n")
        (base / f"memory{number}/valid_zones").write_text(zones + "\n")
        flags[number, :pages] = 1 << 10
    (root / "proc/sys/vm").mkdir(parents=True)
    (root / "proc/kpageflags").write_bytes(flags.tobytes())
    return [Range(BLOCK, len(free) * BLOCK)]


class Blocks:
    """Stands for the kernel: a block that comes back online is empty; some cannot be taken offline."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *refused: str) -> None:
        self.file = root / "proc/kpageflags"
        self.refused = refused
        self.calls: list[str] = []
        self._online = hotplug.online
        monkeypatch.setattr(room, "offline", self.offline)
        monkeypatch.setattr(hotplug, "online", self.online)

    def offline(self, block: Block) -> bool:
        self.calls.append(f"-{block.path.name}")
        if block.path.name in self.refused:
            return False
        (block.path / "state").write_text("offline\n")
        return True

    def online(self, path: Path) -> None:
        self.calls.append(f"+{path.name}")
        self._online(path)
        assert (path / "state").read_text() == "online_movable"
        (path / "state").write_text("online\n")
        flags = np.fromfile(self.file, np.uint64)
        first = int(path.name.removeprefix("memory")) * BLOCK_PAGES
        flags[first : first + BLOCK_PAGES] = 1 << 10
        flags.tofile(self.file)


def ours(*pages: int) -> residency.Frames:
    frames = np.zeros((len(pages) + 1, BLOCK_PAGES), bool)
    for number, count in enumerate(pages, 1):
        frames[number, BLOCK_PAGES - count :] = True
    return frames.ravel()


def test_blocks_of_a_range_are_read(tmp_path: Path) -> None:
    spans = memory(tmp_path, 100, 0)
    (tmp_path / hotplug.MEMORY / "memory2/state").write_text("offline\n")
    (found,) = room.blocks(spans, ours(10, 0), tmp_path)
    assert (found.path.name, found.free, found.ours) == ("memory1", 100, 10)
    assert found.others == BLOCK_PAGES - 110
    assert room.free_bytes([found]) == 100 * PAGE_BYTES
    # a range that covers half a block has none of it
    assert room.blocks([Range(BLOCK, BLOCK // 2)], ours(0), tmp_path) == []


def test_ordinary_memory_is_no_room(tmp_path: Path) -> None:
    assert room.blocks(memory(tmp_path, 100, zones="Normal"), ours(0), tmp_path) == []


def test_only_as_many_blocks_are_emptied_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = memory(tmp_path, 0, 0, 0, 0)
    kernel = Blocks(tmp_path, monkeypatch)
    made = room.make(spans, BLOCK + 1, ours(BLOCK_PAGES, BLOCK_PAGES // 3, 5, 0), tmp_path)
    # both are offline before the first comes back
    assert kernel.calls == ["-memory4", "-memory3", "+memory4", "+memory3"]
    assert (made.free_before, made.free_after) == (0, 2 * BLOCK)
    assert (made.emptied, made.refused, made.dropped_cache) == (2, 0, False)


def test_blocks_full_of_containers_are_not_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = memory(tmp_path, 0, 0)
    kernel = Blocks(tmp_path, monkeypatch)
    made = room.make(spans, BLOCK, ours(BLOCK_PAGES, BLOCK_PAGES), tmp_path)
    assert kernel.calls == []
    assert not made.dropped_cache  # there is none


def test_the_cache_is_dropped_if_blocks_cannot_be_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = memory(tmp_path, 0, 0)
    Blocks(tmp_path, monkeypatch, "memory1", "memory2")
    made = room.make(spans, BLOCK, ours(0, 0), tmp_path)
    assert (made.emptied, made.refused, made.dropped_cache) == (0, 2, True)
    assert (tmp_path / "proc/sys/vm/drop_caches").read_text() == "1"


def test_blocks_come_back_if_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = memory(tmp_path, 0, 0)
    kernel = Blocks(tmp_path, monkeypatch)

    def interrupted(block: Block) -> bool:
        if kernel.calls:
            raise KeyboardInterrupt
        return kernel.offline(block)

    monkeypatch.setattr(room, "offline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        room.make(spans, 2 * BLOCK, ours(0, 0), tmp_path)
    assert kernel.calls == ["-memory1", "+memory1"]


def test_nothing_is_done_if_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Blocks(tmp_path, monkeypatch)
    made = room.make(memory(tmp_path, BLOCK_PAGES), BLOCK // 2, ours(0), tmp_path)
    assert kernel.calls == []
    assert (made.emptied, made.dropped_cache, made.free_after) == (0, False, BLOCK)


def test_the_cache_is_given_up_only_for_want_of_room(tmp_path: Path) -> None:
    spans = memory(tmp_path, 100)
    drop_caches = tmp_path / "proc/sys/vm/drop_caches"
    drop_caches.write_text("")
    assert not room.drop(spans, 100 * PAGE_BYTES, ours(0), tmp_path)
    assert drop_caches.read_text() == ""
    assert room.drop(spans, 101 * PAGE_BYTES, ours(0), tmp_path)
    assert drop_caches.read_text() == "1"


def test_a_block_is_asked_to_go_offline(tmp_path: Path) -> None:
    memory(tmp_path, 0)
    path = tmp_path / hotplug.MEMORY / "memory1"
    block = Block(path, Range(BLOCK, BLOCK), 0, 0)
    assert room.offline(block)
    assert (path / "state").read_text() == "offline\n"
    (path / "state").unlink()
    (path / "state").mkdir()
    assert not room.offline(block)


def test_blocks_of_a_killed_run_come_online_again(tmp_path: Path) -> None:
    spans = memory(tmp_path, 0, 0)
    states = [tmp_path / hotplug.MEMORY / f"memory{number}/state" for number in range(3)]
    states[0].write_text("offline\n")  # does not belong to the range
    states[2].write_text("offline\n")
    room.restore(spans, tmp_path)
    assert [state.read_text() for state in states] == ["offline\n", "online\n", "online_movable"]
