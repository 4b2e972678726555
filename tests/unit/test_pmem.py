# SPDX-License-Identifier: MIT
"""Tests of ``memfs.pmem`` on a fake ``/sys``."""

from pathlib import Path

import pytest

from memfs import pmem
from memfs.namespace import NAMESPACES
from memfs.ranges import Range

GIB = 1 << 30
SPAN = Range(4 * GIB, GIB)


def namespace(root: Path, number: int, span: Range, device: str | None, *, node: bool = True) -> None:
    base = root / NAMESPACES / f"namespace{number}.0"
    base.mkdir(parents=True)
    (base / "resource").write_text(f"{span.start_bytes:#x}\n")
    (base / "size").write_text(f"{span.size_bytes}\n")
    (root / "dev").mkdir(exist_ok=True)
    if device is not None:
        (base / "block" / device).mkdir(parents=True)
        if node:
            (root / "dev" / device).touch()


def test_a_device_is_found_by_its_address_and_size(tmp_path: Path) -> None:
    namespace(tmp_path, 0, Range(8 * GIB, GIB), "pmem0")
    namespace(tmp_path, 1, SPAN, "pmem1")
    assert pmem.find(SPAN, tmp_path) == tmp_path / "dev" / "pmem1"
    assert pmem.find(Range(4 * GIB, 2 * GIB), tmp_path) is None
    assert pmem.find(Range(2 * GIB, GIB), tmp_path) is None


def test_nothing_is_found_before_it_is_whole(tmp_path: Path) -> None:
    assert pmem.find(SPAN, tmp_path) is None
    namespace(tmp_path, 0, SPAN, None)
    assert pmem.find(SPAN, tmp_path) is None
    (tmp_path / NAMESPACES / "namespace0.0" / "block" / "pmem0").mkdir(parents=True)
    assert pmem.find(SPAN, tmp_path) is None
    (tmp_path / "dev" / "pmem0").touch()
    assert pmem.find(SPAN, tmp_path) == tmp_path / "dev" / "pmem0"


@pytest.mark.parametrize(("resource", "size"), [("", "1"), ("0x100000000", ""), ("none", "none")])
def test_a_namespace_that_cannot_be_read_is_passed_over(tmp_path: Path, resource: str, size: str) -> None:
    namespace(tmp_path, 0, SPAN, "pmem0")
    (tmp_path / NAMESPACES / "namespace0.0" / "resource").write_text(resource)
    (tmp_path / NAMESPACES / "namespace0.0" / "size").write_text(size)
    namespace(tmp_path, 1, SPAN, "pmem1")
    assert pmem.find(SPAN, tmp_path) == tmp_path / "dev" / "pmem1"


def test_waiting_ends_when_the_device_appears(tmp_path: Path) -> None:
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            namespace(tmp_path, 0, SPAN, "pmem0")

    assert pmem.wait(SPAN, 5, tmp_path, sleep) == tmp_path / "dev" / "pmem0"
    assert len(slept) == 3


def test_waiting_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"memmap=1G!4G after 0\.02 s"):
        pmem.wait(SPAN, 0.02, tmp_path)
