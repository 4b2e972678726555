# SPDX-License-Identifier: MIT
"""Tests of ``memfs.residency``: made-up mappings, and real processes."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from builders.memory import Child, private, shared
from hypothesis import given
from hypothesis import strategies as st

from memfs import residency
from memfs.calls import extents
from memfs.pagemap import PAGE_BYTES
from memfs.ranges import Range
from memfs.residency import Counts, Mapping, addresses, bitmap, inside, mappings, survey

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
EVERYTHING = [Range(0, 1 << 52)]
MIB_PAGES = (1 << 20) // PAGE_BYTES


def test_mappings_are_parsed() -> None:
    text = (
        "55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]\n"
        "7f1200000000-7f1240000000 ---p 00000000 00:00 0 \n"
        "7f1300000000-7f1300100000 rw-s 00002000 00:01 1027                       /memfd:a b (deleted)\n"
        "7f1400000000-7f1400001000 r--p 0001f000 fd:0a 99                         /usr/lib/x.so\n"
    )
    assert mappings(text) == [
        Mapping(0x55D0C0000000, 0x55D0C0021000, False, 0, (0, 0), 0, "[heap]"),
        Mapping(0x7F1200000000, 0x7F1240000000, False, 0, (0, 0), 0, ""),
        Mapping(0x7F1300000000, 0x7F1300100000, True, 0x2000, (0, 1), 1027, "/memfd:a b (deleted)"),
        Mapping(0x7F1400000000, 0x7F1400001000, False, 0x1F000, (0xFD, 10), 99, "/usr/lib/x.so"),
    ]


@given(st.sets(st.integers(0, 1 << 36), max_size=50))
def test_runs_of_pages_and_their_addresses_are_the_same(pages: set[int]) -> None:
    wanted = np.array(sorted(pages), np.uint64) * np.uint64(PAGE_BYTES)
    runs = extents(wanted)
    assert addresses(runs).tolist() == wanted.tolist()
    ends = runs[:, 0] + runs[:, 1]
    assert (ends[:-1] < runs[1:, 0]).all()  # no two runs touch each other


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=4), st.integers(1, PAGE_BYTES))
def test_a_frame_inside_only_as_a_whole(spans: list[tuple[int, int]], shift: int) -> None:
    ranges = [Range(start * PAGE_BYTES + shift - 1, size * PAGE_BYTES) for start, size in spans]
    expected = [
        any(r.start_bytes <= pfn * PAGE_BYTES and (pfn + 1) * PAGE_BYTES <= r.end_bytes for r in ranges)
        for pfn in range(64)
    ]
    assert inside(ranges)(np.arange(64, dtype=np.uint64)).tolist() == expected
    assert bitmap(ranges, 64).tolist() == expected


@NEEDS_ROOT
def test_pages_are_counted_where_they_lie() -> None:
    with Child(lambda: private(4)) as child:
        base = survey([child.pid], EVERYTHING).total.in_place
        child.go()
        first = survey([child.pid], EVERYTHING)
        # the random contents themselves may still lie in the heap
        assert 4 * MIB_PAGES <= first.total.in_place - base < 9 * MIB_PAGES
        assert first.total.outside == 0
        assert first.share_in_place > 0.99
        nowhere = survey([child.pid], [])
        assert nowhere.total.in_place == nowhere.share_in_place == 0
        assert nowhere.total.outside == int(np.count_nonzero(nowhere.frames))
        assert nowhere.total == nowhere.by_pid[child.pid]


@NEEDS_ROOT
def test_what_several_processes_share_counts_once() -> None:
    kept = private(4), shared(4)

    def work() -> int:
        return sum(kept[0][::PAGE_BYTES]) + sum(kept[1][::PAGE_BYTES])

    with Child(work) as one, Child(work) as two:
        one.go(), two.go()
        alone, both = survey([one.pid], []), survey([one.pid, two.pid], [])
        assert alone.total.pages >= 8 * MIB_PAGES
        assert both.by_pid[one.pid].pages + both.by_pid[two.pid].pages >= 16 * MIB_PAGES
        assert both.total.pages < alone.total.pages + 4 * MIB_PAGES


@NEEDS_ROOT
def test_only_what_a_dump_takes_along_counts(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * (4 << 20))

    def work() -> object:
        with file.open("r+b") as f:
            cow = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE)
            both = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_SHARED)
        cow[: 1 << 20] = b"y" * (1 << 20)
        zeroes = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        zeroes.madvise(mmap.MADV_NOHUGEPAGE)
        return cow, both, zeroes, sum(sum(area[::PAGE_BYTES]) for area in (cow, both, zeroes))

    with Child(work) as child:
        before = survey([child.pid], []).total.pages
        child.go()
        grown = survey([child.pid], []).total.pages - before
        # tmp_path may lie on a tmpfs, whose pages do count
        device = file.stat().st_dev
        on_tmpfs = (os.major(device), os.minor(device)) in residency.shared_memory(child.pid)
    assert MIB_PAGES <= grown < (6 if on_tmpfs else 2) * MIB_PAGES


@NEEDS_ROOT
def test_shared_memory_that_nobody_touched_is_told_apart() -> None:
    def work() -> object:
        fd = os.memfd_create("untouched")
        os.write(fd, b"x" * (4 << 20))
        os.truncate(fd, 16 << 20)
        return mmap.mmap(fd, 0)

    with Child(work) as child:
        before = survey([child.pid], EVERYTHING)
        child.go()
        after = survey([child.pid], EVERYTHING)
    assert after.unmapped - before.unmapped == 4 * MIB_PAGES
    assert after.share_in_place < 1


@NEEDS_ROOT
def test_a_reserved_area_costs_nothing() -> None:
    noreserve = 0x4000  # include/uapi/asm-generic/mman-common.h, MAP_NORESERVE

    def work() -> object:
        area = mmap.mmap(-1, 1 << 42, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve)
        area.madvise(mmap.MADV_NOHUGEPAGE)
        area[1 << 41] = 1
        return area

    with Child(work) as child:
        before = survey([child.pid], EVERYTHING).total.pages
        child.go()
        # read page by page these would be 8 GiB of entries, more than the machine may have
        assert 1 <= survey([child.pid], EVERYTHING).total.pages - before < MIB_PAGES


@NEEDS_ROOT
def test_a_large_mapping_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    with Child(lambda: private(4)) as child:
        child.go()
        whole = survey([child.pid], EVERYTHING)
        monkeypatch.setattr(residency, "PAGES_AT_ONCE", 7)
        assert survey([child.pid], EVERYTHING) == whole
        assert max(len(each.pfns) for each in residency.places(child.pid)) == 7


@NEEDS_ROOT
def test_a_process_that_is_gone_is_left_out() -> None:
    with Child() as gone:
        pass
    found = survey([gone.pid], EVERYTHING)
    assert found.by_pid == {}
    assert found.total == Counts()
    assert found.share_in_place == 1


@NEEDS_ROOT
def test_a_process_that_waits_to_be_collected_is_left_out() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert survey([pid], EVERYTHING).by_pid == {}
    finally:
        os.waitpid(pid, 0)
