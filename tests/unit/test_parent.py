# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.parent``: a parent that has everything, and pagemaps as if there had been none."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders.host import Machine
from hypothesis import given
from hypothesis import strategies as st
from pycriu import images

from upgrade import pagemaps
from upgrade.criu import messages
from upgrade.dump import parent
from upgrade.dump.frames import NOWHERE
from upgrade.dump.parent import FEW_BYTES, LINK, NAME, Parent
from upgrade.errors import UpgradeError
from upgrade.pagemaps import PAGE_BYTES, PE_LAZY, PE_PARENT, PE_PRESENT

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # pycriu under protobuf 6
LAZY = PE_PRESENT | PE_LAZY
REGULAR, VDSO, VVAR = 1, 1 << 3, 1 << 12
PRIVATE, SHARED, ANONYMOUS, LOCKED, HUGETLB = 0x2, 0x1, 0x20, 0x2000, 0x40000
Entry = tuple[int, int, int]


def status(*numbers: int, anonymous_bytes: int = FEW_BYTES, swapped_kib: int = 0) -> str:
    lines = {"NSpid": "\t".join(map(str, numbers)), "RssAnon": f"{anonymous_bytes >> 10} kB"}
    lines["VmSwap"] = f"{swapped_kib} kB"
    return "".join(f"{name}:\t{value}\n" for name, value in lines.items())


def task(machine: Machine, pid: int, text: str) -> None:
    machine.process(pid, status=text)
    machine.file(f"/proc/{pid}/clear_refs", "")


def write(path: Path, magic: str, *entries: dict[str, Any]) -> None:
    with path.open("wb") as f:
        images.dump({"magic": magic, "entries": list(entries)}, f)


def read(path: Path) -> tuple[str, list[Entry]]:
    file, entries = pagemaps.read(path)
    return file, list(entries)


def vma(start: int, end: int, flags: int = PRIVATE | ANONYMOUS, status: int = REGULAR) -> SimpleNamespace:
    return SimpleNamespace(start=start, end=end, flags=flags, status=status)


def pages(entries: Any) -> dict[int, int]:
    return {a + n * PAGE_BYTES: flags for a, count, flags in entries for n in range(count)}


def test_a_parent_claims_all_addresses_of_the_tasks_that_are_worth_it(
    machine: Machine, tmp_path: Path
) -> None:
    task(machine, 500, status(500, 1))
    task(machine, 501, status(501, 7))
    task(machine, 502, status(502, 8, anonymous_bytes=FEW_BYTES - 1024))
    task(machine, 503, status(503, 9, swapped_kib=4))
    task(machine, 504, status(504))  # of no namespace of the tree
    machine.process(505, status=status(505, 10))  # ends just before it is written to
    found = Parent(machine.host, tmp_path)
    found.make(500, [500, 501, 502, 503, 504, 505, 506])
    assert found.tasks == [1, 7]
    assert machine.written("/proc/500/clear_refs") == machine.written("/proc/501/clear_refs") == ["4"]
    assert machine.written("/proc/502/clear_refs") == machine.written("/proc/503/clear_refs") == []
    directory = tmp_path / NAME
    assert {p.name for p in directory.glob("pagemap-*")} == {"pagemap-1.img", "pagemap-7.img"}
    _, entries = read(directory / "pagemap-7.img")
    assert entries[0][0] == 0
    assert all(one[0] + one[1] * PAGE_BYTES == two[0] for one, two in pairwise(entries))
    assert entries[-1][0] + entries[-1][1] * PAGE_BYTES == 1 << 47
    assert all(count < 1 << 32 for _, count, _ in entries)
    with (directory / "inventory.img").open("rb") as f:
        (inventory,) = images.load(f)["entries"]
    assert inventory["dump_uptime"] > 10**15  # microseconds: 30 years
    options = messages().criu_opts()
    found.options(options)
    assert (options.track_mem, options.parent_img) == (True, NAME)


def test_criu_has_no_parent_if_no_task_is_worth_one(machine: Machine, tmp_path: Path) -> None:
    task(machine, 500, status(500, anonymous_bytes=0))
    found = Parent(machine.host, tmp_path)
    found.make(500, [500])
    options = messages().criu_opts()
    found.options(options)
    assert not options.HasField("track_mem")
    assert not options.HasField("parent_img")
    found.dissolve()
    assert not (tmp_path / NAME).exists()


def test_afterwards_all_is_as_if_there_had_been_no_parent(machine: Machine, tmp_path: Path) -> None:
    task(machine, 500, status(500))
    task(machine, 600, status(600))
    found = Parent(machine.host, tmp_path)
    found.make(500, [500, 600])
    (tmp_path / LINK).symlink_to(NAME)
    (tmp_path / "pages-1.img").symlink_to(NOWHERE)
    (tmp_path / "pages-2.img").write_bytes(bytes(PAGE_BYTES))  # no link was left
    one = tmp_path / "pagemap-500.img"
    write(
        one,
        "PAGEMAP",
        {"pages_id": 2},
        {"vaddr": 0x1000, "nr_pages": 1, "flags": PE_PRESENT},
        {"vaddr": 0x2000, "nr_pages": 4, "flags": PE_PARENT},  # the last two are of the next mapping
        {"vaddr": 0x6000, "nr_pages": 1, "flags": LAZY},
        {"vaddr": 0x9000, "nr_pages": 3, "flags": PE_PARENT},
    )
    mapping = {"pgoff": 0, "shmid": 0, "prot": 3, "fd": -1, "status": REGULAR}
    private = {"flags": PRIVATE | ANONYMOUS} | mapping
    places = ["code", "data", "stack", "brk"]
    names = [f"mm_start_{place}" for place in places] + [f"mm_end_{place}" for place in places[:2]]
    names += ["mm_brk", *(f"mm_{what}_{where}" for what in ("arg", "env") for where in ("start", "end"))]
    write(
        tmp_path / "mm-500.img",
        "MM",
        dict.fromkeys([*names, "exe_file_id"], 0)
        | {
            "vmas": [
                {"start": 0x1000, "end": 0x4000, "flags": PRIVATE} | mapping,
                {"start": 0x4000, "end": 0x8000} | private,
                {"start": 0x9000, "end": 0x20000} | private,
            ]
        },
    )
    other = tmp_path / "pagemap-600.img"
    write(other, "PAGEMAP", {"pages_id": 1}, {"vaddr": 0x1000, "nr_pages": 3, "flags": LAZY})
    before = other.read_bytes()
    found.dissolve()
    assert read(one) == (
        "pages-2.img",
        [
            (0x1000, 3, PE_PRESENT),
            (0x4000, 3, LAZY),
            (0x9000, 3, LAZY),
        ],
    )
    assert other.read_bytes() == before
    assert str((tmp_path / "pages-2.img").readlink()) == NOWHERE
    left = {p.name for p in tmp_path.iterdir()} - {"machine"}
    assert left == {one.name, other.name, "mm-500.img", "pages-1.img", "pages-2.img"}


def test_mappings_that_cannot_be_read_are_an_error(machine: Machine, tmp_path: Path) -> None:
    task(machine, 500, status(500))
    found = Parent(machine.host, tmp_path)
    found.make(500, [500])
    write(
        tmp_path / "pagemap-500.img",
        "PAGEMAP",
        {"pages_id": 1},
        {"vaddr": 4096, "nr_pages": 1, "flags": PE_PARENT},
    )
    (tmp_path / "mm-500.img").write_bytes(b"no image")
    with pytest.raises(UpgradeError, match="is no mm"):
        found.dissolve()


@pytest.mark.parametrize(
    ("flags", "kind", "lazy"),
    [
        (PRIVATE | ANONYMOUS, REGULAR, True),
        (PRIVATE | ANONYMOUS | 0x100, REGULAR, True),  # MAP_GROWSDOWN
        (PRIVATE, REGULAR, False),
        (SHARED | ANONYMOUS, REGULAR, False),
        (PRIVATE | ANONYMOUS | LOCKED, REGULAR, False),
        (PRIVATE | ANONYMOUS | HUGETLB, REGULAR, False),
        (PRIVATE | ANONYMOUS, REGULAR | VDSO, False),
        (PRIVATE | ANONYMOUS, REGULAR | VVAR, False),
    ],
)
def test_what_may_be_delayed_is_what_criu_would_delay(flags: int, kind: int, lazy: bool) -> None:
    assert parent.lazy_edges([vma(0x1000, 0x3000, flags, kind)]) == ([0x1000, 0x3000] if lazy else [])


def test_neighbours_of_one_mapping_are_one() -> None:
    found = parent.lazy_edges([vma(0x3000, 0x5000), vma(0x1000, 0x3000), vma(0x8000, 0x9000)])
    assert found == [0x1000, 0x5000, 0x8000, 0x9000]


numbers = st.integers(0, 40)


@given(st.data())
def test_every_page_is_there_once_with_the_flags_of_a_whole_dump(data: st.DataObject) -> None:
    lazy = data.draw(st.lists(st.booleans(), min_size=41, max_size=41))
    held = sorted(data.draw(st.sets(numbers)))
    changed = data.draw(st.sets(numbers))
    mappings = [vma(n * PAGE_BYTES, (n + 1) * PAGE_BYTES) for n, is_lazy in enumerate(lazy) if is_lazy]
    edges = parent.lazy_edges(mappings)
    whole = {n * PAGE_BYTES: LAZY if lazy[n] else PE_PRESENT for n in held}
    dumped = [(n * PAGE_BYTES, 1, whole[n * PAGE_BYTES] if n in changed else PE_PARENT) for n in held]
    found = list(parent.merged(parent.present(parent.merged(dumped), edges)))
    assert pages(found) == whole
    assert sum(count for _, count, _ in found) == len(whole)
    assert found == sorted(found)
    assert len(found) == len(list(parent.merged((a, 1, flags) for a, flags in whole.items())))
