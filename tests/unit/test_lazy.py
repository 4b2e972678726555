# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.lazy``: pagemaps, and layouts against a model that knows every page."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from builders.lazy import write_pagemap
from hypothesis import given
from hypothesis import strategies as st

from upgrade import pagemaps
from upgrade.errors import UpgradeError
from upgrade.pagemaps import PE_LAZY, PE_PARENT, PE_PRESENT
from upgrade.restore import lazy
from upgrade.restore.lazy import Layout, Run, read_pagemap
from upgrade.userfaultfd import (
    PAGE_BYTES,
    UFFD_EVENT_FORK,
    UFFD_EVENT_REMAP,
    UFFD_EVENT_REMOVE,
    UFFD_EVENT_UNMAP,
    Message,
)

PAGES = 60


def test_pages_are_counted_over_those_that_are_not_lazy(tmp_path: Path) -> None:
    path = tmp_path / "pagemap-7.img"
    entries = [
        {"vaddr": 0x1000, "nr_pages": 3, "flags": PE_PRESENT},
        {"vaddr": 0x10000, "nr_pages": 5, "flags": PE_PRESENT | PE_LAZY},
        {"vaddr": 0x20000, "nr_pages": 2},  # of a CRIU without flags
        {"vaddr": 0x30000, "nr_pages": 9, "flags": PE_PRESENT | PE_LAZY},
    ]
    write_pagemap(path, 4, entries)
    found = read_pagemap(path)
    assert (found.pages_file, found.pages, found.lazy_pages) == ("pages-4.img", 19, 14)
    assert found.lazy == (Run(0x10000, 3, 5), Run(0x30000, 10, 9))


@pytest.mark.parametrize(
    ("fields", "pages"),
    [({"nr_pages": 2**33, "compat_nr_pages": 0}, 2**33), ({"nr_pages": 0, "compat_nr_pages": 6}, 6)],
)
def test_the_fields_of_criu_4_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, int], pages: int
) -> None:
    """The pycriu of the tests is 4.1's: only its messages are replaced."""
    path = tmp_path / "pagemap-7.img"
    write_pagemap(path, 1, [{"vaddr": 0, "nr_pages": 1}])
    entry = SimpleNamespace(vaddr=0x1000, flags=PE_PRESENT | PE_LAZY, HasField=lambda _: True, **fields)
    proto = SimpleNamespace(
        pagemap_head=SimpleNamespace(FromString=lambda _: SimpleNamespace(pages_id=1)),
        pagemap_entry=SimpleNamespace(
            FromString=lambda _: entry, DESCRIPTOR=SimpleNamespace(fields_by_name=("compat_nr_pages",))
        ),
    )
    monkeypatch.setattr(pagemaps, "pagemap_messages", lambda: proto)
    assert read_pagemap(path).lazy == (Run(0x1000, 0, pages),)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"vaddr": 0, "nr_pages": 1, "flags": PE_PARENT}, "elsewhere"),
        ({"vaddr": 0, "nr_pages": 1, "in_parent": True}, "elsewhere"),
        ({"vaddr": 0, "nr_pages": 1, "flags": PE_LAZY}, "elsewhere"),
        ({"vaddr": 0, "nr_pages": 0, "flags": PE_LAZY | PE_PRESENT}, "newer CRIU"),
    ],
)
def test_dumps_that_cannot_be_served_are_refused(tmp_path: Path, entry: dict[str, int], text: str) -> None:
    path = tmp_path / "pagemap-7.img"
    write_pagemap(path, 1, [entry])
    with pytest.raises(UpgradeError, match=text):
        read_pagemap(path)


def test_files_that_are_no_pagemaps_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pagemap-7.img"
    write_pagemap(path, 1, [{"vaddr": 0, "nr_pages": 1}])
    whole = path.read_bytes()
    for data in (b"", whole[:8], whole[:-1], b"\0" + whole[1:]):
        path.write_bytes(data)
        with pytest.raises(UpgradeError):
            read_pagemap(path)


def test_the_messages_alone_are_loaded() -> None:
    import subprocess
    import sys

    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from upgrade.criu import pagemap_messages\n"
        "proto = pagemap_messages()\n"
        "assert 'pycriu' not in sys.modules\n"
        "import pycriu.images.pb\n"
        "assert pycriu.images.pb.pagemap_entry is proto.pagemap_entry\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


model_runs = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=8)
changes = st.lists(
    st.tuples(
        st.sampled_from([UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP, UFFD_EVENT_REMAP, UFFD_EVENT_FORK]),
        st.integers(0, PAGES - 1),
        st.integers(1, PAGES // 2),
        st.integers(0, 2 * PAGES),
    ),
    max_size=12,
)


@given(model_runs, changes, st.booleans())
def test_a_layout_is_what_a_model_says(
    gaps: list[tuple[int, int]], events: list[tuple[int, int, int, int]], few: bool
) -> None:
    runs, at, page = [], 0, 0
    for gap, pages in gaps:
        runs.append(Run((at + gap) * PAGE_BYTES, page, pages))
        at += gap + pages
        page += pages + gap
    model = {run.address // PAGE_BYTES + n: run.page + n for run in runs for n in range(run.pages)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "FEW_RUNS", 64 if few else 0)
        layout = Layout(reversed(runs))
        for event, start, length, target in events:
            before = dict(model)
            span = range(start, start + length)
            if event == UFFD_EVENT_REMAP:
                if abs(start - target) < length:
                    continue  # the kernel refuses places that overlap
                moved = {n - start + target: model[n] for n in span if n in model}
                model = {n: p for n, p in model.items() if n not in span}
                model = {n: p for n, p in model.items() if not target <= n < target + length} | moved
                message = Message(event, start * PAGE_BYTES, target * PAGE_BYTES, length * PAGE_BYTES)
            else:
                message = Message(event, start * PAGE_BYTES, (start + length) * PAGE_BYTES, 0)
                if event != UFFD_EVENT_FORK:
                    model = {n: p for n, p in model.items() if n not in span}
            kept = layout.copy()
            assert layout.apply(message) == (before != model)
            assert pages_of(kept) == before
            assert pages_of(layout) == model
        for n in range(3 * PAGES):
            check_place(layout, model, n)
        check_order(layout, model)


def pages_of(layout: Layout) -> dict[int, int]:
    return {run.address // PAGE_BYTES + n: run.page + n for run in layout.runs() for n in range(run.pages)}


def check_place(layout: Layout, model: dict[int, int], n: int) -> None:
    address = n * PAGE_BYTES
    run = layout.at(address)
    if n in model:
        assert run is not None
        assert run.page + (address - run.address) // PAGE_BYTES == model[n]
        return
    assert run is None
    start, end = layout.hole(address - 5 * PAGE_BYTES, address + 6 * PAGE_BYTES, address)
    assert start <= address < end
    assert not set(range(start // PAGE_BYTES, end // PAGE_BYTES)) & set(model)


def check_order(layout: Layout, model: dict[int, int]) -> None:
    """Walk over the pages as the background does, in steps."""
    found, at = {}, 0
    for end in (7, 40, 1000):
        while (run := layout.next(at, end)) is not None:
            assert at <= run.page < end
            assert run.page + run.pages <= end
            found.update({run.address // PAGE_BYTES + n: run.page + n for n in range(run.pages)})
            at = run.page + run.pages
        at = max(at, end)
    assert found == model
