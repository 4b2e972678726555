# SPDX-License-Identifier: MIT
"""CRIU's pagemaps: which pages of whom lie in which order in which ``pages-N.img`` (images/pagemap.proto).

A file of pagemaps begins with two magic numbers; then come a head and entries, each with its length before it. They
are parsed one by one with pycriu's generated classes: pycriu's own reader makes a dictionary of each, and the tasks
stand still meanwhile. For the same reason the numbers are kept in arrays.
"""

import re
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upgrade.criu import pagemap_messages
from upgrade.errors import UpgradeError

PAGE_BYTES = 4096
# criu/include/magic.h
_MAGIC = struct.pack("<II", 0x54564319, 0x56084025)
# criu/include/pagemap.h
PE_PRESENT = 1 << 2
_NAME = re.compile(r"pagemap-(?P<shared>shmem-)?(?P<number>\d+)\.img")


@dataclass(frozen=True, slots=True)
class Pagemap:
    """The pages of one task (``number`` is its PID in its own namespace) or of one shared memory object."""

    number: int
    shared: bool
    file: str
    """The name of the file that holds the pages."""
    starts: "array[int]"
    """Of each run of pages the address (or offset in the object), in the order of the file; what it does not hold is
    left out. 64 bits with a sign."""
    counts: "array[int]"
    """Of each run the number of pages."""

    @property
    def pages(self) -> int:
        """Return how many pages the file holds."""
        return sum(self.counts)


def read_all(directory: Path) -> list[Pagemap]:
    """Return all pagemaps of a dump.

    :raises UpgradeError: if one cannot be understood
    """
    found = []
    for path in sorted(directory.glob("pagemap-*.img")):
        name = _NAME.fullmatch(path.name)
        if name is not None:
            found.append(_read(path, int(name["number"]), shared=name["shared"] is not None))
    return found


def _read(path: Path, number: int, *, shared: bool) -> Pagemap:
    rpc = pagemap_messages()
    starts, counts = array("q"), array("q")
    try:
        messages = _messages(path)
        head = rpc.pagemap_head.FromString(next(messages))
        parse = rpc.pagemap_entry.FromString
        # CRIU 4.2 moved the count to a field of 64 bits and writes 0 to the old one.
        moved = "compat_nr_pages" in rpc.pagemap_entry.DESCRIPTOR.fields_by_name
        for message in messages:
            entry = parse(message)
            if entry.flags & PE_PRESENT or not (entry.flags or _is_hole(entry)):
                starts.append(entry.vaddr)
                counts.append((entry.nr_pages or entry.compat_nr_pages) if moved else entry.nr_pages)
    except UpgradeError:
        raise
    except StopIteration:
        raise UpgradeError("ends before its head", subject=str(path)) from None
    except Exception as e:  # DecodeError is a ValueError in one implementation of protobuf only
        raise UpgradeError(f"cannot be read: {e!r}", subject=str(path)) from e
    return Pagemap(number, shared, f"pages-{head.pages_id}.img", starts, counts)


def _messages(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise UpgradeError("is no pagemap", subject=str(path))
    at, end = len(_MAGIC), len(data)
    length = struct.Struct("<I").unpack_from
    while at < end:
        start = at + 4
        at = start + (length(data, at)[0] if start <= end else end)
        if at > end:  # protobuf may well accept a part of a message
            raise UpgradeError("is cut off", subject=str(path))
        yield data[start:at]


def _is_hole(entry: Any) -> bool:
    """Tell whether an entry without flags has no pages (criu/pagemap.c, init_compat_pagemap_entry())."""
    return entry.HasField("flags") or bool(entry.in_parent)
