# SPDX-License-Identifier: MIT
"""Tests of ``memfs.pagemap``: made-up entries, and this process's own."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfs import pagemap
from memfs.pagemap import PAGE_BYTES, PagemapEnds, PagesHidden, Runs, changed, pfns, pfns_of_runs

PRESENT, SWAPPED, OTHER_FLAGS = 1 << 63, 1 << 62, 0b1111 << 55 | 1 << 61
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
OWN = Path("/proc/self/pagemap")


def entries(path: Path, *values: int) -> Path:
    path.write_bytes(np.array(values, np.uint64).tobytes())
    return path


def test_only_present_pages_have_a_frame(tmp_path: Path) -> None:
    largest = (1 << 55) - 1
    path = entries(
        tmp_path / "pagemap",
        *(0, PRESENT | 5, SWAPPED | 77, PRESENT | OTHER_FLAGS | 6, OTHER_FLAGS, PRESENT | largest, 99),
    )
    assert pfns(path, 0, 7).tolist() == [0, 5, 0, 6, 0, largest, 0]
    assert pfns(path, 3 * PAGE_BYTES, 1).tolist() == [6]
    assert pfns(path, 7 * PAGE_BYTES, 0).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 199), st.integers(0, 60)), max_size=10))
def test_runs_follow_one_another(runs: list[tuple[int, int]]) -> None:
    values = np.arange(1000, 1260, dtype=np.uint64) | np.uint64(PRESENT)
    with os.fdopen(os.memfd_create("pagemap"), "r+b") as f:
        f.write(values.tobytes())
        f.flush()
        found = pfns_of_runs(f.fileno(), ((page * PAGE_BYTES, count) for page, count in runs))
        assert os.fstat(f.fileno()).st_nlink == 0  # still open
    assert found.tolist() == [1000 + page + i for page, count in runs for i in range(count)]


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), max_size=40),
    st.sampled_from([1, 7, 64, 1 << 17]),
    st.sampled_from([1, 3, 20]),
)
def test_runs_that_lie_close_are_no_other_pages(
    steps: list[tuple[int, int]], at_once: int, short: int
) -> None:
    runs, at = [], 0
    for apart, count in steps:
        runs.append((at + apart, count))
        at += apart + count
    values = np.arange(1000, 1000 + at, dtype=np.uint64) | np.uint64(PRESENT)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(os.memfd_create("pagemap"), "r+b") as f:
        patch.setattr(pagemap, "_AT_ONCE", at_once)
        patch.setattr(pagemap, "_SHORT", short)
        patch.setattr(pagemap, "_CLOSE", short)
        f.write(values.tobytes())
        f.flush()
        found = pfns_of_runs(f.fileno(), Runs.of((page * PAGE_BYTES, count) for page, count in runs))
    assert found.tolist() == [1000 + page + i for page, count in runs for i in range(count)]


@given(st.lists(st.tuples(st.integers(0, 1 << 35), st.integers(0, 50)), max_size=30))
def test_pages_have_the_addresses_of_their_runs(runs: list[tuple[int, int]]) -> None:
    some = Runs.of((page * PAGE_BYTES, count) for page, count in runs)
    expected = [(page + i) * PAGE_BYTES for page, count in runs for i in range(count)]
    assert some.pages == len(expected)
    assert some.addresses(np.arange(len(expected))).tolist() == expected
    assert some.addresses(np.arange(len(expected))[::3]).tolist() == expected[::3]


@pytest.mark.parametrize("at_once", [1, 2, 5, 6, 7])
def test_long_runs_are_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(pagemap, "_AT_ONCE", at_once)
    path = entries(tmp_path / "pagemap", *(PRESENT | n for n in range(1, 13)))
    assert pfns_of_runs(path, [(PAGE_BYTES, 6), (0, 12)]).tolist() == [*range(2, 8), *range(1, 13)]


def test_a_short_read_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = entries(tmp_path / "pagemap", *(PRESENT | n for n in range(1, 13)))
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, offset: preadv(fd, [to[0][:16]], offset))
    assert pfns(path, 0, 12).tolist() == [*range(1, 13)]


def test_missing_entries_are_an_error(tmp_path: Path) -> None:
    path = entries(tmp_path / "pagemap", PRESENT | 1, PRESENT | 2)
    with pytest.raises(PagemapEnds, match="0x2000"):
        pfns(path, PAGE_BYTES, 2)


def test_hidden_frames_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(PagesHidden):
        pfns(entries(tmp_path / "pagemap", PRESENT | 5, PRESENT), 0, 2)


@pytest.mark.parametrize(("vaddr", "npages"), [(1, 1), (-PAGE_BYTES, 1), (0, -1)])
def test_what_is_no_run_is_refused(tmp_path: Path, vaddr: int, npages: int) -> None:
    with pytest.raises(ValueError, match="no run"):
        pfns(entries(tmp_path / "pagemap", 0, 0), vaddr, npages)


def test_changes_are_the_indexes_of_pages() -> None:
    old = np.array([1, 0, 3, 4, 0], np.uint64)
    new = np.array([1, 2, 3, 0, 0], np.uint64)
    assert changed(old, old.copy()).tolist() == []
    assert changed(old, new).tolist() == [1, 3]
    with pytest.raises(ValueError, match="5 and 4"):
        changed(old, new[:4])


@NEEDS_ROOT
def test_own_pages_have_frames_once_they_are_touched() -> None:
    pages = 1000
    with mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_NOHUGEPAGE)
        view = np.frombuffer(area, np.uint8)
        vaddr = int(view.ctypes.data)
        assert not pfns(OWN, vaddr, pages).any()
        view[:: 2 * PAGE_BYTES] = 1
        first = pfns(OWN, vaddr, pages)
        assert first[0::2].all()
        assert not first[1::2].any()
        assert len(np.unique(first[0::2])) == pages // 2
        # nothing moves them: the same frames, unless the kernel compacts right now
        assert len(changed(first, pfns(OWN, vaddr, pages))) < pages // 10
        area.madvise(mmap.MADV_DONTNEED, 0, 10 * PAGE_BYTES)
        assert set(range(0, 10, 2)) <= set(changed(first, pfns(OWN, vaddr, pages)).tolist())
        del view


@NEEDS_ROOT
def test_shared_memory_has_the_same_frames_in_every_mapping() -> None:
    fd = os.memfd_create("shared")
    os.truncate(fd, 100 * PAGE_BYTES)
    with mmap.mmap(fd, 0) as one, mmap.mmap(fd, 0) as other:
        one[:] = b"x" * len(one)
        assert other[:] == one[:]
        views = [np.frombuffer(area, np.uint8) for area in (one, other)]
        first, second = (pfns(OWN, int(view.ctypes.data), 100) for view in views)
        assert first.all()
        assert len(changed(first, second)) < 10
        views.clear()
    os.close(fd)


@NEEDS_ROOT
def test_an_address_that_no_process_has_is_an_error() -> None:
    with pytest.raises(PagemapEnds):
        pfns(OWN, 1 << 62, 1)
