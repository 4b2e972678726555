# SPDX-License-Identifier: MIT
"""Tests of ``memfs.ranges``, against a model of the kernel's ``memparse()``."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memfs.ranges import Range, parse_command_line, parse_iomem, parse_size

GIB = 1 << 30


def memparse(text: str) -> tuple[int, str]:
    """Return the number at the start of ``text`` and what is behind it (lib/cmdline.c, lib/vsprintf.c)."""
    base, digits, at = 10, "0123456789", 0
    if text[:1] == "0":
        base, digits = 8, "01234567"
        if text[1:2].lower() == "x" and text[2:3] in tuple("0123456789abcdefABCDEF"):
            base, digits, at = 16, "0123456789abcdefABCDEF", 2
    end = at
    while text[end : end + 1] and text[end] in digits:
        end += 1
    value = int(text[at:end] or "0", base)
    suffix = "kmgtpe".find(text[end : end + 1].lower()) if text[end : end + 1] else -1
    return (value << 10 * (suffix + 1), text[end + 1 :]) if suffix >= 0 else (value, text[end:])


def kernel_ranges(command_line: str) -> list[tuple[int, int]]:
    """Return start and size of every ``memmap=SIZE!START`` (arch/x86/kernel/e820.c, parse_memmap_one())."""
    found = []
    for word in command_line.split(" "):
        for entry in word.removeprefix("memmap=").split(",") if word.startswith("memmap=") else []:
            size, rest = memparse(entry)
            if rest != entry and rest[:1] == "!":
                start, rest = memparse(rest[1:])
                found += [(start, size)] if rest == "" else []
    return sorted(found)


numbers = st.one_of(
    st.integers(0, 1 << 45).map(str),
    st.integers(0, 1 << 45).map(hex),
    st.integers(0, 1 << 45).map(lambda n: f"0X{n:X}"),
    st.integers(0, 4096).map(lambda n: f"0{n:o}"),
)
sizes = st.tuples(numbers, st.sampled_from(["", *"kKmMgGtTpPeE"])).map("".join)
entries = st.tuples(sizes, st.sampled_from("!@#$"), sizes).map("".join) | st.sampled_from(
    ["exactmap", "", "!", "!4G", "1G!4G!", "0x!4G", "-1G!4G"]
)
words = st.lists(entries, min_size=1, max_size=3).map(lambda e: "memmap=" + ",".join(e)) | st.sampled_from(
    ["quiet", "mem=4G", "xmemmap=1G!4G", "root=/dev/vda1", "memmap"]
)


@given(sizes)
@example("0x1e")
@example("0x1eE")
@example("1e")
@example("0x10k")
def test_sizes_are_read_as_the_kernel_reads_them(text: str) -> None:
    value, rest = memparse(text)
    assert (parse_size(text), rest) == (value, "")


@pytest.mark.parametrize(("text", "expected"), [("010", 8), ("0100M", 64 << 20), ("0", 0), ("00", 0)])
def test_a_leading_zero_means_octal(text: str, expected: int) -> None:
    assert memparse(text) == (expected, "")
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "1GG", "0x", "1 G", "-1", "1.5G", "G1", "1G\n", "\u0661G", "08"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@given(st.text(alphabet="0123456789abefxkKMGxX !", max_size=8))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    value, rest = memparse(text)
    try:
        assert (parse_size(text), "") == (value, rest)
    except ValueError:
        assert rest or not text[:1].isdigit()  # the kernel takes no digits for 0; that is no size to us


@given(st.lists(words, max_size=4).map(" ".join))
@example("memmap=1G!4G,512M!8G memmap=0x1000!0x2000")
def test_command_lines_are_read_as_the_kernel_reads_them(command_line: str) -> None:
    assert [(r.start_bytes, r.size_bytes) for r in parse_command_line(command_line)] == kernel_ranges(
        command_line
    )


@given(st.integers(0, 1 << 45), st.integers(1, 1 << 45))
def test_what_a_range_is_called_is_what_the_kernel_takes(start: int, size: int) -> None:
    span = Range(start, size)
    assert parse_command_line(str(span)) == [span]
    assert span.end_bytes - 1 == start + size - 1


def test_names_are_short() -> None:
    assert str(Range(4 * GIB, GIB)) == "memmap=1G!4G"
    assert str(Range(0, 3 << 20)) == "memmap=3M!0x0"


def test_the_kernel_s_memory_map_is_read() -> None:
    text = (
        "00001000-0009fbff : System RAM\n"
        "100000000-13fffffff : Persistent Memory (legacy)\n"
        "  100000000-13fffffff : namespace0.0\n"
        "080000000-0bfffffff : Persistent Memory (legacy)\n"
        "140000000-1bfffffff : System RAM\n"
    )
    assert parse_iomem(text) == [Range(2 * GIB, GIB), Range(4 * GIB, GIB)]
    assert parse_iomem("") == []
