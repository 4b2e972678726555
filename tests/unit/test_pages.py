# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.pages`` on images that pycriu wrote."""

from pathlib import Path

import pytest
from pycriu import images

from upgrade.pagemaps import PAGE_BYTES
from upgrade.restore.pages import count

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # pycriu under protobuf 6


def pagemap(directory: Path, name: str, pages_id: int, *runs: int) -> None:
    """Write a pagemap with runs of so many pages."""
    entries = [{"pages_id": pages_id}]
    entries += [{"vaddr": 0x10000 * n, "nr_pages": pages, "flags": 1 << 2} for n, pages in enumerate(runs)]
    with (directory / name).open("wb") as f:
        images.dump({"magic": "PAGEMAP", "entries": entries}, f)


def test_pages_are_those_of_all_pagemaps(tmp_path: Path) -> None:
    pagemap(tmp_path, "pagemap-500.img", 1, 3, 10)
    pagemap(tmp_path, "pagemap-501.img", 2, 1)
    pagemap(tmp_path, "pagemap-shmem-7.img", 3, 100)
    found = count(tmp_path)
    assert (found.total, found.copied, found.copied_bytes) == (114, 114, 114 * PAGE_BYTES)
    found = count(tmp_path, ["pages-1.img", "pages-3.img"], stragglers=7)
    assert (found.total, found.copied) == (114, 1 + 7)


def test_a_process_without_pages(tmp_path: Path) -> None:
    pagemap(tmp_path, "pagemap-500.img", 1)
    assert (count(tmp_path).total, count(tmp_path).copied) == (0, 0)


def test_no_dump_is_no_pages(tmp_path: Path) -> None:
    assert (count(tmp_path).total, count(tmp_path).copied_bytes) == (0, 0)
