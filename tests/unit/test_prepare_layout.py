# SPDX-License-Identifier: MIT
"""Which ranges are chosen: in RAM, aligned, over nothing that is there, with enough left for everybody."""

import itertools
import re
from pathlib import Path

import pytest
from builders.firmware import BLOCK, GIB, LOW, MIB, RAM, Entry, build, pc
from builders.host import Machine
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from memfs import ranges
from memfs.ranges import ALIGNMENT_BYTES, Range
from upgrade.errors import ExitStatus, Refusal, UpgradeError, UsageError
from upgrade.prepare import layout, memory
from upgrade.prepare.layout import Layout
from upgrade.prepare.memory import Memory, Node


def holds(memory: Memory, found: Layout) -> None:
    """Assert everything that has to be true of a layout."""
    spans = found.spans
    assert spans == tuple(sorted(spans))
    assert 2 <= len(spans) <= ranges.KASLR_RANGES
    for before, after in itertools.pairwise(spans):
        assert before.end_bytes < after.start_bytes, "they would become one"
    nodes = {node.number: node for node in memory.nodes}
    for placed in (found.store, *found.frames):
        span = placed.span
        assert span.start_bytes >= layout.LOWEST_BYTES
        assert span.start_bytes % ALIGNMENT_BYTES == span.size_bytes % ALIGNMENT_BYTES == 0
        inside = [free for free in nodes[placed.node].free if memory_of(free, span)]
        assert len(inside) == 1, "in one free piece of its node"
    assert found.store.span.start_bytes % layout.SECTION_BYTES == 0
    for placed in found.frames:
        assert placed.span.end_bytes % memory.block_bytes == 0
        blocks = placed.span.size_bytes - placed.head_bytes
        assert blocks > 0
        assert blocks % memory.block_bytes == 0
        assert placed.head_bytes == ranges.head_bytes(blocks)
        behind = [ram for ram in nodes[placed.node].ram if ram.end_bytes > placed.span.end_bytes]
        assert memory_module.without(behind, [Range(0, placed.span.end_bytes), *spans]), "no memory behind it"
    for number, node in nodes.items():
        mine = [
            placed.span.size_bytes - placed.head_bytes for placed in found.frames if placed.node == number
        ]
        assert sum(mine) <= layout.NODE_SHARE * node.ram_bytes
    # what refuse_too_large() and the budget of plan.py want, with R full of containers
    assert found.store.span.size_bytes >= 0.015 * found.frames_bytes + (16 << 20)
    assert layout.left_bytes(memory, found) >= found.frames_bytes + memory.host_bytes


memory_module = memory


def memory_of(free: Range, span: Range) -> bool:
    return free.start_bytes <= span.start_bytes and span.end_bytes <= free.end_bytes


def seen(tmp_path: Path, entries: list[Entry], **more: object) -> Memory:
    machine = Machine(tmp_path)
    build(machine, entries, **more)  # type: ignore[arg-type]
    return memory.read(machine.host)


def test_one_node(tmp_path: Path) -> None:
    found = seen(tmp_path, pc(14 * GIB))
    chosen = layout.choose(found, None)
    holds(found, chosen)
    assert 4 * GIB - 2 * BLOCK <= chosen.frames_bytes <= 4 * GIB + BLOCK, "a quarter of 16 GiB"
    # right below the last block of the node
    assert chosen.spans[-1].end_bytes == 18 * GIB - BLOCK
    assert chosen.store.span.size_bytes == 256 * MIB
    assert chosen.warnings == ()


def test_the_test_machine(tmp_path: Path) -> None:
    found = seen(tmp_path, pc(2 * GIB))
    chosen = layout.choose(found, None)
    holds(found, chosen)
    assert chosen.frames_bytes == 1 * GIB
    assert [str(span) for span in chosen.spans] == ["memmap=256M!4480M", "memmap=1040M!4976M"]


def test_two_nodes_get_a_range_each(tmp_path: Path) -> None:
    nodes = {0: [(0, 2 * GIB), (4 * GIB, 34 * GIB)], 1: [(34 * GIB, 66 * GIB)]}
    found = seen(tmp_path, pc(62 * GIB), nodes=nodes)
    assert [node.number for node in found.nodes] == [0, 1]
    chosen = layout.choose(found, 16 * GIB)
    holds(found, chosen)
    assert [placed.node for placed in chosen.frames] == [0, 1]
    sizes = [placed.span.size_bytes - placed.head_bytes for placed in chosen.frames]
    assert sum(sizes) == 16 * GIB
    assert abs(sizes[0] - sizes[1]) <= 2 * BLOCK
    assert chosen.frames[0].span.end_bytes == 34 * GIB - BLOCK, "not up to the other node"


def test_large_memory_blocks(tmp_path: Path) -> None:
    found = seen(tmp_path, pc(126 * GIB), block_bytes=2 * GIB)
    chosen = layout.choose(found, None)
    holds(found, chosen)
    assert chosen.frames_bytes == 32 * GIB


def test_more_nodes_than_ranges(tmp_path: Path) -> None:
    borders = [(4 + 16 * number) * GIB for number in range(9)]
    nodes = {n: [(borders[n], borders[n + 1])] for n in range(8)}
    nodes[0].append((0, 2 * GIB))
    found = seen(tmp_path, pc(128 * GIB), nodes=nodes)
    chosen = layout.choose(found, None)
    holds(found, chosen)
    assert len(chosen.frames) == 3


def test_a_node_without_processors_and_programs_gets_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    nodes = {0: [(0, 2 * GIB), (4 * GIB, 20 * GIB)], 1: [(20 * GIB, 84 * GIB)]}
    build(machine, pc(80 * GIB), nodes=nodes)
    machine.file("/sys/devices/system/node/node1/cpulist", "")
    machine.file("/sys/devices/system/node/node1/meminfo", "Node 1 AnonPages: 0 kB")
    found = memory.read(machine.host)
    chosen = layout.choose(found, 2 * GIB)
    holds(found, chosen)
    assert [placed.node for placed in chosen.frames] == [0]


def test_all_below_4_gib(tmp_path: Path) -> None:
    found = seen(tmp_path, pc(0, low_bytes=3 * GIB))
    chosen = layout.choose(found, None)
    holds(found, chosen)
    assert chosen.spans[-1].end_bytes <= 3 * GIB - BLOCK
    assert chosen.frames_bytes == 768 * MIB


def test_an_efi_map_with_holes(tmp_path: Path) -> None:
    entries = [
        *LOW,
        (MIB, 0x76E00000, RAM),
        (0x76E00000, 0x77000000, "ACPI Non-volatile Storage"),
        (0x77000000, 0x78000000, RAM),
        (0x78000000, 0x79000000, "Reserved"),  # runtime services
        (0x79000000, 0x7A000000, "ACPI Tables"),
        (0x7A000000, 0x7B000000, RAM),
        (4 * GIB, 6 * GIB, RAM),
        (6 * GIB, 6 * GIB + 16 * MIB, "Soft Reserved"),
        (6 * GIB + 16 * MIB, 10 * GIB, RAM),
    ]
    inside = [
        (0x10000000, 0x20000000, "Crash kernel"),
        (9 * GIB + 512 * MIB, 9 * GIB + 540 * MIB, "Kernel code"),
        (8 * GIB, 8 * GIB + 256 * MIB, "Crash kernel"),
    ]
    found = seen(tmp_path, entries, inside=inside)
    chosen = layout.choose(found, None)
    holds(found, chosen)
    crash = Range(8 * GIB, 256 * MIB)
    assert memory.intersection(chosen.spans, [crash]) == ()
    assert len(chosen.frames) == 1, "a little less in one piece is better than two"


def test_two_pieces_if_no_single_one_is_large_enough(tmp_path: Path) -> None:
    entries = [*pc(2 * GIB), (6 * GIB, 7 * GIB, "Reserved"), (7 * GIB, 9 * GIB, RAM)]
    found = seen(tmp_path, entries)
    chosen = layout.choose(found, 2 * GIB)
    holds(found, chosen)
    assert len(chosen.frames) == 2
    assert chosen.frames_bytes == 2 * GIB


def test_programs_decide_if_they_have_more_than_a_quarter(tmp_path: Path) -> None:
    found = seen(tmp_path, pc(14 * GIB), programs_bytes=4 * GIB)
    assert layout.choose(found, None).frames_bytes == 6 * GIB
    full = seen(tmp_path / "full", pc(14 * GIB), programs_bytes=10 * GIB)
    chosen = layout.choose(full, None)
    holds(full, chosen)
    assert chosen.frames_bytes < 10 * GIB
    assert "would be refused" in chosen.warnings[0]


def test_small_machines_are_refused_with_figures(tmp_path: Path) -> None:
    found = seen(tmp_path, pc(0, low_bytes=GIB))
    with pytest.raises(Refusal) as told:
        layout.choose(found, None)
    assert told.value.status is ExitStatus.REFUSED
    assert "MiB" in str(told.value)
    assert told.value.hint


def test_no_budget_is_refused_with_figures(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="512 MiB of it"):
        layout.choose(seen(tmp_path, pc(0, low_bytes=900 * MIB)), None)


def test_too_much_is_refused_and_the_most_is_named(tmp_path: Path) -> None:
    found = seen(tmp_path, pc(14 * GIB))
    with pytest.raises(Refusal, match="are too much") as told:
        layout.choose(found, 9 * GIB)
    most = str(told.value.hint).split()[1].rstrip(",")
    holds(found, layout.choose(found, layout.parse_memory(most, found.ram_bytes)))


def test_pieces_too_small_are_refused_and_what_fits_is_named(tmp_path: Path) -> None:
    entries = list(pc(0))
    for number in range(4, 20):
        entries += [(number * GIB, number * GIB + 900 * MIB, RAM)]
    found = seen(tmp_path, entries)
    with pytest.raises(Refusal, match="do not fit") as told:
        layout.choose(found, 4 * GIB)
    fits = str(told.value.hint).split()[1].rstrip(",")
    holds(found, layout.choose(found, layout.parse_memory(fits, found.ram_bytes)))


def test_what_was_set_aside_before_counts_as_ram(tmp_path: Path) -> None:
    first = seen(tmp_path / "before", pc(14 * GIB))
    chosen = layout.choose(first, 2 * GIB)
    machine = Machine(tmp_path / "after")
    build(machine, pc(14 * GIB), aside=chosen.spans)
    again = memory.read(machine.host, chosen.spans)
    assert [node.free for node in again.nodes] == [node.free for node in first.nodes]


def test_without_the_firmwares_map_iomem_does(tmp_path: Path) -> None:
    found = seen(tmp_path, pc(14 * GIB), firmware=False)
    holds(found, layout.choose(found, None))


def test_firmware_has_the_last_word(tmp_path: Path) -> None:
    """RAM that was hot-added later is not set aside: the next kernel may not have it at its start."""
    machine = Machine(tmp_path)
    build(machine, pc(4 * GIB))
    text = machine.host.read("/proc/iomem")
    machine.file("/proc/iomem", f"{text}\n300000000-3ffffffff : System RAM")
    assert memory.read(machine.host).nodes[0].ram[-1].end_bytes == 8 * GIB


def test_addresses_hidden_from_others(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    build(machine, pc(4 * GIB))
    machine.file("/proc/iomem", "00000000-00000000 : Reserved\n00000000-00000000 : System RAM")
    with pytest.raises(UpgradeError) as told:
        memory.read(machine.host)
    assert told.value.status is ExitStatus.NOT_PRIVILEGED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8G", 8 * GIB),
        ("512M", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("25%", 4 * GIB),
        ("12.5 %", 2 * GIB),
        ("2g", 2 * GIB),
    ],
)
def test_memory_is_a_size_or_a_share(text: str, expected: int) -> None:
    assert layout.parse_memory(text, 16 * GIB) == expected


@pytest.mark.parametrize("text", ["", "much", "0%", "100%", "-1G", "0G", "4096", "1.5G", "%"])
def test_memory_is_nothing_else(text: str) -> None:
    with pytest.raises(UsageError):
        layout.parse_memory(text, 16 * GIB)


pieces = st.lists(
    st.tuples(st.integers(0, 64), st.integers(1, 512), st.booleans()), min_size=1, max_size=6
)  # a hole before it in 16 MiB, its size in 16 MiB; whether the kernel lies in it


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    """Return hosts with any number of pieces on up to five nodes, and odd addresses."""
    nodes, start = [], 0
    block = draw(st.sampled_from([128 * MIB, 256 * MIB, 2 * GIB]))
    odd = draw(st.sampled_from([0, 4096, 5 * MIB]))
    for number in range(draw(st.integers(1, 5))):
        ram, taken = [], []
        for hole, size, kernel in draw(pieces):
            start += hole * 16 * MIB + odd
            span = Range(start, size * 16 * MIB)
            ram.append(span)
            if kernel:
                taken.append(Range(start + span.size_bytes // 2, 3 * MIB))
            start = span.end_bytes
        whole = memory.union(ram)
        programs = draw(st.integers(0, 4)) * GIB
        cpus = draw(st.booleans())
        nodes.append(Node(number, whole, memory.without(whole, taken), cpus, programs))
        start += 32 * MIB
    host = draw(st.integers(512, 4096)) * MIB
    return Memory(tuple(nodes), block, sum(node.programs_bytes for node in nodes), host)


def choose(found: Memory, asked: int | None, slots: int = ranges.KASLR_RANGES) -> Layout | Refusal:
    try:
        return layout.choose(found, asked, slots)
    except Refusal as e:
        return e


@settings(deadline=None)
@given(memories(), st.one_of(st.none(), st.integers(1, 64).map(lambda n: n * 256 * MIB)), st.integers(2, 4))
def test_whatever_is_chosen_is_right(found: Memory, asked: int | None, slots: int) -> None:
    chosen = choose(found, asked, slots)
    if isinstance(chosen, Refusal):
        assert re.search(r"\d [MG]iB", str(chosen))
        assert chosen.hint
        return
    holds(found, chosen)
    assert len(chosen.spans) <= slots
    if asked is not None:
        assert 0 <= chosen.frames_bytes - asked < found.block_bytes


@settings(deadline=None)
@given(memories())
def test_a_refusal_names_something_that_works(found: Memory) -> None:
    refused = choose(found, found.ram_bytes // 2)
    assert isinstance(refused, Refusal), "the containers would have to fit into half of what is left"
    assume("--memory" in str(refused.hint))
    fits = layout.parse_memory(str(refused.hint).split()[1].rstrip(","), found.ram_bytes)
    second = choose(found, fits)
    if isinstance(second, Refusal):  # enough in all, but in pieces
        assert "do not fit" in str(second) or "largest free piece" in str(second)
        assume("--memory" in str(second.hint))
        fits = layout.parse_memory(str(second.hint).split()[1].rstrip(","), found.ram_bytes)
        second = choose(found, fits)
    assert isinstance(second, Layout)
    holds(found, second)


spans = st.lists(st.builds(Range, st.integers(0, 200), st.integers(1, 50)), max_size=8)


@given(spans, spans)
def test_sets_of_addresses(some: list[Range], others: list[Range]) -> None:
    def addresses(spans: object) -> set[int]:
        return {a for span in spans for a in range(span.start_bytes, span.end_bytes)}  # type: ignore[attr-defined]

    a, b = addresses(some), addresses(others)
    assert addresses(memory.union(some)) == a
    assert addresses(memory.intersection(some, others)) == a & b
    assert addresses(memory.without(some, others)) == a - b
