# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.pagemaps`` on images that pycriu wrote, whole and broken."""

import importlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycriu import images

from upgrade import pagemaps
from upgrade.criu import pagemap_messages
from upgrade.errors import UpgradeError
from upgrade.pagemaps import Pagemap, read_all

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # pycriu under protobuf 6
PARENT, LAZY, PRESENT = 1, 2, 4
MAGIC = struct.pack("<II", 0x54564319, 0x56084025)
SAME_DIRECTORY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write(directory: Path, name: str, pages_id: int, *entries: dict[str, Any]) -> Path:
    path = directory / name
    with path.open("wb") as f:
        images.dump({"magic": "PAGEMAP", "entries": [{"pages_id": pages_id}, *entries]}, f)
    return path


def runs(found: Pagemap) -> list[tuple[int, int]]:
    return list(zip(found.starts, found.counts, strict=True))


def entry(address: int, pages: int, **more: Any) -> dict[str, Any]:
    return {"vaddr": address, "nr_pages": pages, **more}


def test_tasks_and_objects_have_pagemaps(tmp_path: Path) -> None:
    write(
        tmp_path,
        "pagemap-500.img",
        7,
        entry(0x7FFFFFFFF000, 1, flags=PRESENT),
        entry(0x1000, 9, flags=PRESENT | LAZY),
    )
    write(tmp_path, "pagemap-shmem-3.img", 8, entry(0, 2**32 - 1, flags=PRESENT))
    (tmp_path / "pagemap-other.img").write_text("no pagemap")
    task, shared = read_all(tmp_path)
    assert (task.number, task.shared, task.file, task.pages) == (500, False, "pages-7.img", 10)
    assert runs(task) == [(0x7FFFFFFFF000, 1), (0x1000, 9)]
    assert (shared.number, shared.shared, shared.file, runs(shared)) == (
        3,
        True,
        "pages-8.img",
        [(0, 2**32 - 1)],
    )


@pytest.mark.parametrize(
    ("more", "held"),
    [
        ({"flags": PRESENT}, True),
        ({"flags": PRESENT | LAZY}, True),
        ({"flags": PARENT}, False),
        ({"flags": LAZY}, False),
        ({"flags": 0}, False),
        ({}, True),  # as criu/pagemap.c, init_compat_pagemap_entry()
        ({"in_parent": False}, True),
        ({"in_parent": True}, False),
    ],
)
def test_only_what_the_file_holds_counts(tmp_path: Path, more: dict[str, Any], held: bool) -> None:
    write(tmp_path, "pagemap-1.img", 1, entry(0x1000, 3, **more), entry(0x9000, 1, flags=PRESENT))
    assert runs(read_all(tmp_path)[0]) == [(0x1000, 3)] * held + [(0x9000, 1)]


def test_a_count_of_64_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU 4.2 writes the count to a field of its own, and 0 to the old one."""
    pb = "google.protobuf"
    descriptor_pb2 = importlib.import_module(f"{pb}.descriptor_pb2")
    descriptor_pool = importlib.import_module(f"{pb}.descriptor_pool")
    message_factory = importlib.import_module(f"{pb}.message_factory")
    file = descriptor_pb2.FileDescriptorProto()
    pagemap_messages().DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "pagemap42.proto", "criu42"
    del file.dependency[:]
    message = next(m for m in file.message_type if m.name == "pagemap_entry")
    for each in (*message.field, *file.message_type[0].field):
        each.ClearField("options")
    names = {each.name: each for each in message.field}
    if "compat_nr_pages" not in names:
        names["nr_pages"].name = "compat_nr_pages"
        message.field.add(name="nr_pages", number=5, label=1, type=4)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)

    class Messages:
        pagemap_head = message_factory.GetMessageClass(pool.FindMessageTypeByName("criu42.pagemap_head"))
        pagemap_entry = message_factory.GetMessageClass(pool.FindMessageTypeByName("criu42.pagemap_entry"))

    parts = [
        Messages.pagemap_head(pages_id=1),
        Messages.pagemap_entry(vaddr=0, compat_nr_pages=0, nr_pages=2**33, flags=PRESENT),
        Messages.pagemap_entry(vaddr=4096, compat_nr_pages=5, flags=PRESENT),
    ]
    raw = [part.SerializeToString() for part in parts]
    (tmp_path / "pagemap-1.img").write_bytes(MAGIC + b"".join(struct.pack("<I", len(r)) + r for r in raw))
    monkeypatch.setattr(pagemaps, "pagemap_messages", lambda: Messages)
    assert runs(read_all(tmp_path)[0]) == [(0, 2**33), (4096, 5)]
    pagemaps.write(tmp_path / "pagemap-1.img", "pages-1.img", [(4096, 2**34, PRESENT)])
    assert runs(read_all(tmp_path)[0]) == [(4096, 2**34)]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "pagemap-1.img"
    entries = [(0x1000, 2**32 - 1, PRESENT), (0x7FFFFFFFF000, 1, PRESENT | LAZY)]
    pagemaps.write(path, "pages-12.img", entries)
    file, found = pagemaps.read(path)
    assert (file, list(found)) == ("pages-12.img", entries)
    with path.open("rb") as f:
        head, first, _ = images.load(f)["entries"]
    assert (head["pages_id"], first["nr_pages"]) == (12, 2**32 - 1)


def test_a_file_that_is_cut_off_is_an_error_wherever_it_is_cut(tmp_path: Path) -> None:
    path = write(
        tmp_path, "pagemap-1.img", 1, *(entry(0x1000 * n, 1 + 200 * n, flags=PRESENT) for n in range(1, 6))
    )
    whole, data = runs(read_all(tmp_path)[0]), path.read_bytes()
    parts, subjects = [], set()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        try:
            parts.append(runs(read_all(tmp_path)[0]))
        except UpgradeError as e:
            subjects.add(e.subject)
    assert subjects == {str(path)}
    # nobody can see that whole messages are missing at the end
    assert parts == [whole[:n] for n in range(5)]


@SAME_DIRECTORY
@given(st.binary(max_size=200), st.booleans())
def test_a_foreign_file_is_an_error(tmp_path: Path, data: bytes, begins_right: bool) -> None:
    (tmp_path / "pagemap-1.img").write_bytes((MAGIC if begins_right else b"") + data)
    try:
        (found,) = read_all(tmp_path)
    except UpgradeError:
        return
    assert begins_right
    assert found.file.startswith("pages-")


@SAME_DIRECTORY
@given(st.data())
def test_a_damaged_file_is_an_error_or_a_pagemap(tmp_path: Path, data: st.DataObject) -> None:
    path = write(tmp_path, "pagemap-1.img", 1, *(entry(0x1000 * n, n, flags=PRESENT) for n in range(1, 4)))
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        (found,) = read_all(tmp_path)
    except UpgradeError:
        return
    assert len(found.starts) == len(found.counts)
