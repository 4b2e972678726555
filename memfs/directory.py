# SPDX-License-Identifier: MIT
"""A directory of EROFS: blocks of 4096 bytes, each with its entries first and their names behind them.

The kernel finds a name by bisection (fs/erofs/namei.c), so names are in the order of their bytes, within a block and
from block to block; a block's first entry tells with the offset of its name how many entries there are.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

BLOCK_BYTES = 4096
NAME_BYTES = 255  # EROFS_NAME_LEN

_ENTRY = struct.Struct("<QHBB")  # nid, nameoff, file_type, reserved
_REGULAR, _DIRECTORY = 1, 2  # FT_REG_FILE, FT_DIR


def refuse(names: Sequence[bytes]) -> None:
    """Refuse what a directory cannot hold.

    :param names: in the order of their bytes
    :raises ValueError: if a name is none, or there twice
    """
    for name in names:
        if not 0 < len(name) <= NAME_BYTES or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise ValueError(f"not a file name: {name!r}")
    for one, other in pairwise(names):
        if one >= other:
            raise ValueError(f"{other!r} twice or not in order")


def count_blocks(names: Iterable[bytes]) -> int:
    """Return how many blocks the directory takes."""
    return sum(1 for _ in _groups(sorted([b".", b"..", *names])))


def pack(own_nid: int, files: Iterable[tuple[bytes, int]]) -> bytes:
    """Return a root directory of regular files, to the end of the last block's names.

    :param files: names and inode numbers (nid)
    """
    nids = {b".": own_nid, b"..": own_nid, **dict(files)}
    blocks = []
    for names in _groups(sorted(nids)):
        offset = len(names) * _ENTRY.size
        entries = []
        for name in names:
            kind = _DIRECTORY if name in (b".", b"..") else _REGULAR
            entries.append(_ENTRY.pack(nids[name], offset, kind, 0))
            offset += len(name)
        blocks.append(b"".join([*entries, *names]))
    return b"".join(block.ljust(BLOCK_BYTES, b"\0") for block in blocks[:-1]) + blocks[-1]


def _groups(names: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the names of one block after the other."""
    group: list[bytes] = []
    used = 0
    for name in names:
        need = _ENTRY.size + len(name)
        if used + need > BLOCK_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += need
    yield group
