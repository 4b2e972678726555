# SPDX-License-Identifier: MIT
"""The header of an EROFS image whose files' blocks lie anywhere on its devices, in any order.

One flat directory of chunk-based files, a chunk being a block of 4096 bytes: each page of a file is found with an
index entry of 8 bytes, so 1 GiB of files costs 2 MiB. What is written is block 0 (the superblock) and the metadata
area, which may begin at any other block; blocks that hold file contents are never touched.

::

    block 0      1024 bytes of zeroes, superblock, a slot for each extra device
    metadata     [64 unused] root inode, {inode, its chunk indexes} in the order of the names, directory blocks

The format is fs/erofs/erofs_fs.h of Linux 5.15 and later. Its block numbers have 32 bits and the last one means a
hole: a device has at most 2^32 - 1 blocks (16 TiB).

The image may have extra devices, which are mounted with ``device=`` each, in the order of the slots. Here all blocks
have one numbering: those of the primary device first, then those of each extra device from its number on. On disk a
chunk index has the device and the block there: device 0 and a number of the whole image would be right as well
(erofs_map_dev()), but fsck.erofs 1.5 looks for it on the primary device, and Linux 7.x takes chunks with successive
numbers for one extent, even where another device begins (erofs_map_chunks()).

**An image with extra devices must be read with DAX only.** Through the page cache, Linux (seen with 6.18) reads a
page from the wrong device if the page before ends on another one at just that sector: iomap's readahead compares
sectors but not devices (https://lkml.iu.edu/2606.1/10289.html). Since a mount goes on without DAX where a device has
none, whoever mounts must look.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from mmap import mmap
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from memfs import directory

BLOCK_BYTES = directory.BLOCK_BYTES
HOLE = 0xFFFFFFFF  # EROFS_NULL_ADDR: a block of zeroes
MOST_BLOCKS = HOLE

Blocks: TypeAlias = NDArray[np.uint32]

_MAGIC = 0xE0F5E1E2
_SUPERBLOCK = 1024
_COMPAT_SB_CHKSUM = 0x1
_INCOMPAT_CHUNKED_FILE = 0x4
_INCOMPAT_DEVICE_TABLE = 0x8
_CHUNK_FORMAT_INDEXES = 0x20  # the low bits: log2(blocks in a chunk), 0
_EXTENDED, _FLAT, _CHUNK_BASED = 1, 0 << 1, 4 << 1  # i_format
_VOLUME_BYTES = 15  # and a zero: the kernel refuses a volume name without

_INODE_BYTES = 64
_INDEX_BYTES = 8
_NID_BYTES = 32
# format, xattr_icount, mode, reserved, size, i_u, ino, uid, gid, mtime, mtime_nsec, nlink, reserved2
_INODE = struct.Struct("<HHHHQIIIIQII16x")
# magic, checksum, feature_compat, blkszbits, extslots, root_nid, inos, build_time, build_time_nsec, blocks,
# meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, extra_devices, devt_slotoff, the rest is 0
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sI2xHH38x")
_SLOT = struct.Struct("<64sII56x")  # tag, blocks, mapped_blkaddr
# devt_slotoff reaches 8 MiB only: the metadata may lie further behind, block 0 never does
_FIRST_SLOT = (_SUPERBLOCK + _SUPER.size) // _SLOT.size
MOST_EXTRA = BLOCK_BYTES // _SLOT.size - _FIRST_SLOT
_TAG_BYTES = 63

# The number 0 is no inode: glibc takes a directory entry with it for a deleted one.
_ROOT_OFFSET = _INODE_BYTES
_ROOT_NID = _ROOT_OFFSET // _NID_BYTES
_PIECE = 1 << 20  # blocks looked at in one go


@dataclass(frozen=True, slots=True)
class File:
    """A file to be: its name and exact size; it takes a block for every 4096 bytes begun."""

    name: str
    size_bytes: int

    @property
    def blocks(self) -> int:
        """Return the number of its blocks, holes included."""
        return -(-self.size_bytes // BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Extra:
    """A device besides the primary one, and the number that its first block has in the image."""

    blocks: int
    first_block: int
    tag: str = ""
    """What it is, for people: the kernel does not look at it if it is given ``device=``."""

    @property
    def end_block(self) -> int:
        """Return the first number behind it."""
        return self.first_block + self.blocks


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes. Known before the files' blocks are: they may be allocated behind the metadata."""

    files: tuple[File, ...]
    """In the order of their names' bytes."""
    offsets: tuple[int, ...]
    """Of each file's inode, in bytes from the start of the metadata."""
    meta_start_block: int
    meta_blocks: int
    directory_offset: int
    device_blocks: int
    """Of the primary device."""
    extra: tuple[Extra, ...] = ()

    @property
    def meta_end_block(self) -> int:
        """Return the first block behind the metadata."""
        return self.meta_start_block + self.meta_blocks


@dataclass(frozen=True, slots=True)
class Header:
    """What has to be written: ``block0`` to the start of the device, ``metadata`` to the layout's start block."""

    layout: Layout
    block0: bytes
    metadata: memoryview


def chain(device_blocks: int, extra: Iterable[tuple[int, str]]) -> tuple[Extra, ...]:
    """Return extra devices, given as sizes in blocks and tags, numbered one behind the other."""
    found, at = [], device_blocks
    for blocks, tag in extra:
        found.append(Extra(blocks, at, tag))
        at = found[-1].end_block
    return tuple(found)


def plan(
    files: Iterable[File], meta_start_block: int, device_blocks: int, extra: Sequence[Extra] = ()
) -> Layout:
    """Return the layout of the metadata of ``files``.

    :param meta_start_block: where the metadata begins, anywhere behind block 0
    :param device_blocks: the size of the (primary) device in blocks of 4096 bytes
    :param extra: further devices as ``chain`` returns them, in the order in which they will be mounted
    :raises ValueError: if a name is none or appears twice, the metadata would not fit on the device, or the extra
        devices are too many or not one behind the other
    """
    ordered = tuple(sorted(files, key=lambda f: f.name.encode()))
    names = [f.name.encode() for f in ordered]
    directory.refuse(names)
    if any(f.size_bytes < 0 for f in ordered):
        raise ValueError("negative file size")
    offsets, at = [], _ROOT_OFFSET + _INODE_BYTES
    for file in ordered:
        offsets.append(at)
        # no inode straddles two blocks: 4096 is a multiple of 64
        at = _up(at + _INODE_BYTES + file.blocks * _INDEX_BYTES, _INODE_BYTES)
    end = _up(at, BLOCK_BYTES)
    size = end // BLOCK_BYTES + directory.count_blocks(names)
    layout = Layout(ordered, tuple(offsets), meta_start_block, size, end, device_blocks, tuple(extra))
    if not 0 < device_blocks <= MOST_BLOCKS:
        raise ValueError(f"a device has 1 to {MOST_BLOCKS} blocks, not {device_blocks}")
    if meta_start_block < 1 or layout.meta_end_block > device_blocks:
        raise ValueError(
            f"metadata of blocks {meta_start_block} to {layout.meta_end_block - 1} is not on the device"
        )
    _refuse_extra(layout)
    return layout


def write(
    layout: Layout,
    blocks: Mapping[str, Blocks],
    *,
    uuid: bytes = bytes(16),
    volume: str = "",
    out: mmap | bytearray | memoryview | None = None,
) -> Header:
    """Return the header of files whose contents lie in ``blocks``, block numbers of the devices or ``HOLE``.

    Takes 8 bytes a page for the metadata (none if ``out`` is given) and not more than a few MiB beside it.

    :param out: where the metadata is written to, of ``layout.meta_blocks * 4096`` bytes; new memory without. A
        mapping stays open as long as the header's view of it
    :raises ValueError: if a file's blocks do not fit its size, lie on no device, or would be
        overwritten by the header; or if uuid, volume name or ``out`` have the wrong size
    """
    if len(uuid) != 16 or len(volume.encode()) > _VOLUME_BYTES:
        raise ValueError(f"the uuid has 16 bytes, the volume name at most {_VOLUME_BYTES}")
    size = layout.meta_blocks * BLOCK_BYTES
    target = memoryview(bytearray(size) if out is None else out).cast("B")
    if len(target) != size or target.readonly:
        raise ValueError(f"the metadata takes {size} writable bytes")
    area = np.frombuffer(target, np.uint8)
    area[:BLOCK_BYTES] = 0
    for number, (file, offset) in enumerate(zip(layout.files, layout.offsets, strict=True), start=2):
        found = blocks[file.name]
        if found.shape != (file.blocks,) or found.dtype != np.uint32:
            raise ValueError(f"{file.name}: {file.size_bytes} bytes take {file.blocks} blocks of type uint32")
        _refuse_blocks(layout, file.name, found)
        inode = _inode(_CHUNK_BASED, 0o100400, file.size_bytes, _CHUNK_FORMAT_INDEXES, number, 1)
        first = offset + _INODE_BYTES
        last = first + file.blocks * _INDEX_BYTES
        target[offset:first] = inode
        _write_indexes(area[first:last].view("<u4"), found, layout.extra)
        area[last : _up(last, BLOCK_BYTES)] = 0  # what belongs to the next inode is written after
    nids = (offset // _NID_BYTES for offset in layout.offsets)
    entries = directory.pack(_ROOT_NID, zip((f.name.encode() for f in layout.files), nids, strict=True))
    at = layout.directory_offset
    target[at:] = entries.ljust(size - at, b"\0")
    block = layout.meta_start_block + at // BLOCK_BYTES
    root = _inode(_FLAT, 0o040500, len(entries), block, 1, 2)
    target[_ROOT_OFFSET : _ROOT_OFFSET + _INODE_BYTES] = root
    return Header(layout, _block0(layout, uuid, volume), target)


def _write_indexes(indexes: Blocks, blocks: Blocks, extra: Sequence[Extra]) -> None:
    """Write advise (16 bits), device_id (16 bits) and blkaddr of each chunk."""
    indexes[0::2] = 0
    indexes[1::2] = blocks
    for device_id, device in enumerate(extra, start=1):
        for at in range(0, len(blocks), _PIECE):
            some = indexes[2 * at : 2 * (at + _PIECE)]
            relative = blocks[at : at + _PIECE] - np.uint32(device.first_block)
            inside = relative < device.blocks
            np.copyto(some[0::2], device_id << 16, where=inside)
            np.copyto(some[1::2], relative, where=inside)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _refuse_extra(layout: Layout) -> None:
    if len(layout.extra) > MOST_EXTRA:
        raise ValueError(f"{len(layout.extra)} extra devices, {MOST_EXTRA} have a slot in block 0")
    for before, extra in pairwise([Extra(layout.device_blocks, 0), *layout.extra]):
        if extra.blocks <= 0 or extra.first_block < before.end_block or extra.end_block > MOST_BLOCKS:
            raise ValueError(f"{extra} does not lie between block {before.end_block} and {MOST_BLOCKS}")
        if len(extra.tag.encode()) > _TAG_BYTES:
            raise ValueError(f"a tag has at most {_TAG_BYTES} bytes: {extra.tag}")


def _refuse_blocks(layout: Layout, name: str, blocks: Blocks) -> None:
    start, length = np.uint32(layout.meta_start_block), np.uint32(layout.meta_blocks)
    for at in range(0, len(blocks), _PIECE):
        some = blocks[at : at + _PIECE]
        # what lies before the start becomes a large number
        if (some == 0).any() or (some - start < length).any():
            raise ValueError(f"{name}: a block lies where the header goes")
        far = some[some >= layout.device_blocks]
        for extra in layout.extra:
            far = far[far - np.uint32(extra.first_block) >= extra.blocks]
        if (far != HOLE).any():
            raise ValueError(f"{name}: a block lies on no device")


def _inode(kind: int, mode: int, size: int, i_u: int, number: int, links: int) -> bytes:
    return _INODE.pack(_EXTENDED | kind, 0, mode, 0, size, i_u, number, 0, 0, 0, 0, links)


def _block0(layout: Layout, uuid: bytes, volume: str) -> bytes:
    count = len(layout.extra)
    features = _INCOMPAT_CHUNKED_FILE | (_INCOMPAT_DEVICE_TABLE if count else 0)
    slots = b"".join(_SLOT.pack(e.tag.encode(), e.blocks, e.first_block) for e in layout.extra)

    def fields(checksum: int) -> bytes:
        values = (
            *(_MAGIC, checksum, _COMPAT_SB_CHKSUM, BLOCK_BYTES.bit_length() - 1, 0),
            *(_ROOT_NID, len(layout.files) + 1, 0, 0, layout.device_blocks),
            *(layout.meta_start_block, 0, uuid, volume.encode(), features),
            *(count, _FIRST_SLOT if count else 0),
        )
        return (_SUPER.pack(*values) + slots).ljust(BLOCK_BYTES - _SUPERBLOCK, b"\0")

    return bytes(_SUPERBLOCK) + fields(_crc32c(fields(0)))


def _crc32c(data: bytes) -> int:
    """Return the Castagnoli CRC as EROFS has it: all ones at the start, not inverted at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc
