# SPDX-License-Identifier: MIT
"""Tests of ``memfs.damon`` on a made-up tree: the real one belongs to the machine. tests/vm/test_frames.py has that."""

from pathlib import Path

import numpy as np
import pytest

from memfs import damon

PARTS = (
    "nr_kdamonds",
    "0/state",
    "0/contexts/nr_contexts",
    "0/contexts/0/operations",
    "0/contexts/0/avail_operations",
    "0/contexts/0/monitoring_attrs/intervals/sample_us",
    "0/contexts/0/monitoring_attrs/intervals/aggr_us",
    "0/contexts/0/monitoring_attrs/intervals/update_us",
    "0/contexts/0/monitoring_attrs/nr_regions/max",
    "0/contexts/0/targets/nr_targets",
    "0/contexts/0/targets/0/regions/nr_regions",
    "0/contexts/0/targets/0/regions/0/start",
    "0/contexts/0/targets/0/regions/0/end",
    "0/contexts/0/targets/0/regions/1/start",
    "0/contexts/0/targets/0/regions/1/end",
    "0/contexts/0/schemes/nr_schemes",
    "0/contexts/0/schemes/0/action",
    "0/contexts/0/schemes/0/access_pattern/sz/max",
    "0/contexts/0/schemes/0/access_pattern/nr_accesses/max",
    "0/contexts/0/schemes/0/access_pattern/age/max",
    "0/contexts/0/schemes/0/filters/nr_filters",
    "0/contexts/0/schemes/0/filters/0/type",
    "0/contexts/0/schemes/0/filters/0/matching",
    "0/contexts/0/schemes/0/stats/sz_tried",
    "0/contexts/0/schemes/0/stats/sz_applied",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in PARTS:
        file = tmp_path / damon.ADMIN / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0")
    write(tmp_path, "0/contexts/0/avail_operations", "vaddr fvaddr paddr")
    write(tmp_path, "0/contexts/0/schemes/0/stats/sz_applied", str(1 << 20))
    write(tmp_path, "0/state", "off")
    return tmp_path


def write(root: Path, part: str, text: str) -> None:
    (root / damon.ADMIN / part).write_text(text)


def read(root: Path, part: str) -> str:
    return (root / damon.ADMIN / part).read_text()


def test_frames_are_the_regions_of_a_scheme(root: Path) -> None:
    with damon.claimed(root) as ours:
        assert ours
        assert read(root, "nr_kdamonds") == "1"
        assert read(root, "0/contexts/0/operations").startswith("paddr")
        assert read(root, "0/contexts/0/schemes/0/action") == "pageout"
        damon.page_out(np.array([[8192, 4096], [1 << 20, 8192]], np.uint64), root)
        places = [
            read(root, f"0/contexts/0/targets/0/regions/{number}/{end}")
            for number in (0, 1)
            for end in ("start", "end")
        ]
        assert places == ["8192", "12288", str(1 << 20), str((1 << 20) + 8192)]
        assert read(root, "0/contexts/0/targets/0/regions/nr_regions") == "2"
        # what is paged out must not go on being paged out
        assert read(root, "0/state").startswith("off")
    assert read(root, "nr_kdamonds") == "0"


def test_somebody_elses_is_left_alone(root: Path) -> None:
    write(root, "nr_kdamonds", "2")
    with damon.claimed(root) as ours:
        assert not ours
    damon.release(root)
    assert read(root, "nr_kdamonds") == "2"


def test_without_damon_nothing_is_claimed(tmp_path: Path) -> None:
    assert not damon.is_free(tmp_path)
    with damon.claimed(tmp_path) as ours:
        assert not ours
    damon.release(tmp_path)


def test_without_physical_addresses_it_is_given_back(root: Path) -> None:
    write(root, "0/contexts/0/avail_operations", "vaddr fvaddr")
    with damon.claimed(root) as ours:
        assert not ours
    assert read(root, "nr_kdamonds") == "0"


def test_what_a_killed_process_left_on_is_switched_off(root: Path) -> None:
    write(root, "nr_kdamonds", "1")
    write(root, "0/state", "on")
    damon.release(root)
    assert read(root, "nr_kdamonds") == "0"
    assert read(root, "0/state").startswith("of")


def test_what_was_left_because_it_is_in_use_is_paged_out_after_all(root: Path) -> None:
    filters = "0/contexts/0/schemes/0/filters"
    write(root, "0/contexts/0/schemes/0/stats/sz_tried", str(1 << 20))
    write(root, "0/contexts/0/schemes/0/stats/sz_applied", "0")
    with damon.claimed(root):
        damon.page_out(np.array([[8192, 4096]], np.uint64), root)
        assert read(root, f"{filters}/0/type").startswith("young")
        assert read(root, f"{filters}/0/matching").startswith("N")
        assert read(root, f"{filters}/nr_filters").startswith(
            "0"
        )  # the next ones are looked at from the beginning
