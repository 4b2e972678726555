# SPDX-License-Identifier: MIT
"""Physical memory ranges that the kernel's command line sets aside with ``memmap=SIZE!START``.

Documentation/admin-guide/kernel-parameters.txt: ``memmap=nn[KMG]!ss[KMG]`` marks memory as protected (e820 type
12), which the ``nd_e820`` driver shows as a legacy persistent memory region.
"""

import re
from dataclasses import dataclass

# arch/x86/boot/compressed/kaslr.c, MAX_MEMMAP_REGIONS: more ranges switch physical KASLR off
KASLR_RANGES = 4
# drivers/nvdimm/region_devs.c: a namespace begins and ends at a multiple of this (memremap_compat_align())
ALIGNMENT_BYTES = 16 << 20

_SUFFIXES = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
# simple_strtoull() with base 0: a leading zero means octal
_NUMBER = r"(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)[kKmMgGtTpPeE]?"
_ENTRY = re.compile(rf"(?P<size>{_NUMBER})!(?P<start>{_NUMBER})")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Some physical memory, in bytes."""

    start_bytes: int
    size_bytes: int

    @property
    def end_bytes(self) -> int:
        """Return the first address behind the range."""
        return self.start_bytes + self.size_bytes

    def __str__(self) -> str:
        return f"memmap={_pretty(self.size_bytes)}!{_pretty(self.start_bytes)}"


def head_bytes(frames_bytes: int) -> int:
    """Return how much a range needs before its first memory block for ``frames_bytes`` of page frames.

    The frame map takes 2 MiB for each GiB, and twice as much is for pages that have to be copied.
    """
    wanted = (8 + 6 * -(-frames_bytes // (1 << 30))) << 20
    return -(-wanted // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def parse_size(text: str) -> int:
    """Return a size as the kernel's ``memparse()`` reads it, in bytes; ValueError if it is none."""
    match = re.fullmatch(_NUMBER, text)
    if match is None:
        raise ValueError(f"not a size: {text!r}")
    suffix = text[-1].lower() if text[-1].lower() in _SUFFIXES and not text[-1].isdigit() else ""
    # 'e' ends a hexadecimal number as a digit, not as a suffix
    if suffix == "e" and text[:2].lower() == "0x":
        suffix = ""
    digits = text[: len(text) - len(suffix)]
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[:1] == "0" else 10
    return int(digits, base) << _SUFFIXES[suffix]


def parse_command_line(command_line: str) -> list[Range]:
    """Return the ranges of a command line in the order of their addresses.

    ``memmap=`` takes several, divided by commas; entries of other kinds (``@ # $``) are not ours.
    """
    found = []
    for word in command_line.split():
        if word.startswith("memmap="):
            for entry in word.removeprefix("memmap=").split(","):
                match = _ENTRY.fullmatch(entry)
                if match:
                    found.append(Range(parse_size(match["start"]), parse_size(match["size"])))
    return sorted(found)


def parse_iomem(text: str) -> list[Range]:
    """Return the legacy persistent memory ranges that ``/proc/iomem`` shows (needs CAP_SYS_ADMIN there)."""
    found = []
    for line in text.splitlines():
        span, _, name = line.strip().partition(" : ")
        if name.startswith("Persistent Memory"):
            start, _, last = span.partition("-")
            found.append(Range(int(start, 16), int(last, 16) - int(start, 16) + 1))
    return sorted(found)


def _pretty(number: int) -> str:
    for suffix in ("G", "M", "K"):
        shift = _SUFFIXES[suffix.lower()]
        if number and number % (1 << shift) == 0:
            return f"{number >> shift}{suffix}"
    return hex(number)
