# SPDX-License-Identifier: MIT
"""CRIU's pagemaps: which pages of whom lie in which order in which ``pages-N.img`` (images/pagemap.proto).

A file of pagemaps begins with two magic numbers; then come a head and entries, each with its length before it. They
are parsed one by one with pycriu's generated classes: pycriu's own reader makes a dictionary of each, and the tasks
stand still meanwhile.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    runs: tuple[tuple[int, int], ...]
    """Address (or offset in the object) and number of pages, in the order of the file; what it does not hold is
    left out."""

    @property
    def pages(self) -> int:
        """Return how many pages the file holds."""
        return sum(pages for _, pages in self.runs)


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
    messages = _messages(path)
    try:
        head = rpc.pagemap_head.FromString(next(messages))
        entries = [rpc.pagemap_entry.FromString(message) for message in messages]
    except Exception as e:  # DecodeError is a ValueError in one implementation of protobuf only
        raise UpgradeError(f"cannot be read: {e!r}", subject=str(path)) from e
    runs = tuple((e.vaddr, _pages(e)) for e in entries if _present(e))
    return Pagemap(number, shared, f"pages-{head.pages_id}.img", runs)


def _messages(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise UpgradeError("is no pagemap", subject=str(path))
    at = len(_MAGIC)
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _pages(entry: object) -> int:
    # CRIU 4.2 moved the count to a field of 64 bits and writes 0 to the old one.
    return int(getattr(entry, "nr_pages", 0) or getattr(entry, "compat_nr_pages", 0))


def _present(entry: object) -> bool:
    flags = int(getattr(entry, "flags", 0))
    return bool(flags & PE_PRESENT)
