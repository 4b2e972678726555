# SPDX-License-Identifier: MIT
"""CRIU's pagemaps: which pages of whom lie in which order in which ``pages-N.img`` (images/pagemap.proto).

A file of pagemaps begins with two magic numbers; then come a head and entries, each with its length before it. They
are parsed one by one with pycriu's generated classes: pycriu's own reader makes a dictionary of each, and the tasks
stand still meanwhile. For the same reason the numbers are kept in arrays.
"""

import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upgrade.criu import pagemap_messages
from upgrade.errors import UpgradeError

PAGE_BYTES = 4096
# criu/include/magic.h
IMG_COMMON_MAGIC, PAGEMAP_MAGIC = 0x54564319, 0x56084025
MAGIC = struct.pack("<II", IMG_COMMON_MAGIC, PAGEMAP_MAGIC)
# criu/include/pagemap.h
PE_PARENT = 1 << 0
PE_LAZY = 1 << 1
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
    starts, counts = array("q"), array("q")
    file, entries = read(path)
    for address, pages, flags in entries:
        if flags & PE_PRESENT:
            starts.append(address)
            counts.append(pages)
    return Pagemap(number, shared, file, starts, counts)


def read(path: Path) -> tuple[str, Iterator[tuple[int, int, int]]]:
    """Return the name of the file that holds the pages; and of each run address, number of pages and flags.

    :raises UpgradeError: if it cannot be understood; while the runs are read, too
    """
    rpc = pagemap_messages()
    found = messages(path, MAGIC)
    try:
        head = rpc.pagemap_head.FromString(next(found))
    except UpgradeError:
        raise
    except StopIteration:
        raise UpgradeError("ends before its head", subject=str(path)) from None
    except Exception as e:  # DecodeError is a ValueError in one implementation of protobuf only
        raise UpgradeError(f"cannot be read: {e!r}", subject=str(path)) from e
    return f"pages-{head.pages_id}.img", _entries(path, found, rpc)


def write(path: Path, file: str, entries: Iterable[tuple[int, int, int]]) -> None:
    """Write what :func:`read` returns."""
    rpc = pagemap_messages()
    # CRIU 4.2 moved the count to a field of 64 bits; the old one is still required.
    moved = {"compat_nr_pages": 0} if _moved(rpc) else {}
    found = [rpc.pagemap_entry(vaddr=a, nr_pages=n, flags=flags, **moved) for a, n, flags in entries]
    head = rpc.pagemap_head(pages_id=int(file.removeprefix("pages-").removesuffix(".img")))
    write_messages(path, MAGIC, [head, *found])


def _moved(rpc: Any) -> bool:
    return "compat_nr_pages" in rpc.pagemap_entry.DESCRIPTOR.fields_by_name


def _entries(path: Path, found: Iterator[bytes], rpc: Any) -> Iterator[tuple[int, int, int]]:
    parse = rpc.pagemap_entry.FromString
    # CRIU 4.2 moved the count to a field of 64 bits and writes 0 to the old one.
    moved = _moved(rpc)
    try:
        for message in found:
            entry = parse(message)
            pages = (entry.nr_pages or entry.compat_nr_pages) if moved else entry.nr_pages
            yield entry.vaddr, pages, entry.flags or _flags(entry)
    except UpgradeError:
        raise
    except Exception as e:
        raise UpgradeError(f"cannot be read: {e!r}", subject=str(path)) from e


def messages(path: Path, magic: bytes) -> Iterator[bytes]:
    """Return the messages of an image of CRIU that begins with ``magic``.

    :raises UpgradeError: if it is no such image, or cut off
    """
    data = path.read_bytes()
    if not data.startswith(magic):
        raise UpgradeError(f"is no {path.name.partition('-')[0]}", subject=str(path))
    at, end = len(magic), len(data)
    length = struct.Struct("<I").unpack_from
    while at < end:
        start = at + 4
        at = start + (length(data, at)[0] if start <= end else end)
        if at > end:  # protobuf may well accept a part of a message
            raise UpgradeError("is cut off", subject=str(path))
        yield data[start:at]


def write_messages(path: Path, magic: bytes, found: Iterable[Any]) -> None:
    """Write an image of CRIU."""
    parts = [magic]
    for message in found:
        raw = message.SerializeToString()
        parts += (struct.pack("<I", len(raw)), raw)
    path.write_bytes(b"".join(parts))


def _flags(entry: Any) -> int:
    """Return what an entry without flags means (criu/pagemap.c, init_compat_pagemap_entry())."""
    if entry.HasField("flags"):
        return 0
    return PE_PARENT if entry.in_parent else PE_PRESENT
