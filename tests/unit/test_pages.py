# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.pages`` on images that pycriu wrote."""

from pathlib import Path

import pytest
from pycriu import images

from upgrade.restore.pages import PAGE_BYTES, count

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
    (tmp_path / "pages-1.img").write_bytes(bytes(13 * PAGE_BYTES))
    (tmp_path / "pages-2.img").write_bytes(bytes(PAGE_BYTES))
    (tmp_path / "pages-3.img").symlink_to("/dev/null")
    (tmp_path / "core-500.img").write_bytes(bytes(PAGE_BYTES))
    found = count(tmp_path)
    assert (found.total, found.copied, found.copied_bytes) == (114, 14, 14 * PAGE_BYTES)


def test_a_process_without_pages(tmp_path: Path) -> None:
    pagemap(tmp_path, "pagemap-500.img", 1)
    assert (count(tmp_path).total, count(tmp_path).copied) == (0, 0)


def test_no_dump_is_no_pages(tmp_path: Path) -> None:
    assert (count(tmp_path).total, count(tmp_path).copied_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("entry", "pages"),
    [({"nr_pages": 7}, 7), ({"compat_nr_pages": 0, "nr_pages": 2**33}, 2**33), ({"compat_nr_pages": 7}, 7)],
)
def test_the_fields_of_both_versions_of_criu_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, int], pages: int
) -> None:
    """CRIU 4.2's images cannot be written with 4.1's pycriu: only its reader is replaced."""
    (tmp_path / "pagemap-1.img").touch()
    monkeypatch.setattr(images, "load", lambda f, no_payload: {"entries": [{"pages_id": 1}, entry]})
    assert count(tmp_path).total == pages
