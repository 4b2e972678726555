# SPDX-License-Identifier: MIT
"""The names in an initrd, without unpacking it.

An initrd is any number of cpio archives in the ``newc`` format, each as it is or compressed, with zeroes between them
(Documentation/driver-api/early-userspace/buffer-format.rst): processor microcode first, then the rest. The signatures
are those of ``lib/decompress.c``.
"""

import bz2
import lzma
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from upgrade.errors import Refusal
from upgrade.process import reading

_CPIO = (b"070701", b"070702")
_TRAILER = "TRAILER!!!"
_HEADER_BYTES = 110
_LONGEST_NAME = 4096  # PATH_MAX: init/initramfs.c leaves out what is longer
_STEP_BYTES = 1 << 18
_ZSTD = b"\x28\xb5\x2f\xfd"
_LZ4 = b"\x02\x21\x4c\x18"


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Broken(Exception):
    """The archive is not what it should be; the text says where."""


def names(path: Path) -> Iterator[str]:
    """Yield the names of all files in the initrd at ``path``, as from ``/`` but without it, in their order.

    :raises Refusal: where it is no initrd, or ends early
    :raises DependencyMissing: where the program for its compression is not installed
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise _Broken("is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield from _parts(data)
    except _Broken as e:
        raise Refusal(
            f"is no initrd that the kernel can unpack: {e}",
            subject=str(path),
            hint="make it again, for example: update-initramfs -u -k VERSION",
        ) from e


def _parts(data: mmap.mmap) -> Iterator[str]:
    at, size = 0, len(data)
    while at < size:
        head = data[at : at + 6]
        if not head[0]:
            at = _behind_zeroes(data, at)
        elif head in _CPIO:
            data.seek(at)
            yield from _archive(_Counted(data))
            at = data.tell()
        else:
            end, stream = _compressed(data, at)
            with stream as opened:
                source = _Counted(opened)
                yield from _archives(source)
            if not source.at:
                raise _Broken(f"nothing comes out of the data at byte {at}")
            at = end()


def _behind_zeroes(data: mmap.mmap, at: int) -> int:
    while at < len(data):
        some = data[at : at + _STEP_BYTES]
        rest = some.lstrip(b"\0")
        at += len(some) - len(rest)
        if rest:
            break
    return at


def _archives(source: "_Counted") -> Iterator[str]:
    """Yield the names of all archives in what one compressed part holds."""
    while True:
        head = source.past_zeroes()
        if not head:
            return
        yield from _archive(source, head)


def _archive(source: "_Counted", head: bytes = b"") -> Iterator[str]:
    """Yield the names of one archive; the source stands behind its last entry then."""
    start = source.at - len(head)
    while True:
        header = head + source.read(_HEADER_BYTES - len(head))
        head = b""
        if header[:6] not in _CPIO:
            raise _Broken(f"no entry of cpio at byte {source.at - len(header)}")
        try:
            length, name_length = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError as e:
            raise _Broken(f"a damaged entry of cpio at byte {source.at - len(header)}") from e
        if not 0 < name_length <= _LONGEST_NAME:
            raise _Broken(f"a name of {name_length} bytes at byte {source.at}")
        name = source.read(name_length)[:-1].decode(errors="surrogateescape")
        source.skip(-(source.at - start) % 4)
        if name == _TRAILER:
            return
        source.skip(length + -length % 4)
        yield name.removeprefix(".").lstrip("/") if name.startswith(("./", "/")) else name


class _Counted:
    """A stream that knows where it is, and takes no end for an answer."""

    def __init__(self, stream: "IO[bytes] | mmap.mmap | _Stream") -> None:
        self._stream = stream
        self.at = 0

    def read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            some = self._stream.read(size - len(found))
            if not some:
                raise _Broken("ends early")
            found += some
        self.at += size
        return found

    def skip(self, size: int) -> None:
        if isinstance(self._stream, mmap.mmap):
            if self._stream.tell() + size > len(self._stream):
                raise _Broken("ends early")
            self._stream.seek(size, 1)
            self.at += size
            return
        while size:
            size -= len(self.read(min(size, _STEP_BYTES)))

    def past_zeroes(self) -> bytes:
        """Return the first byte that is not zero; empty at the end."""
        while some := self._stream.read(1):
            self.at += 1
            if some != b"\0":
                return some
        return b""


class _Stream:
    """What one of the standard library's decoders makes of a part of the file."""

    def __init__(self, data: mmap.mmap, at: int, decoder: _Decoder) -> None:
        self._data, self._at, self._decoder = data, at, decoder
        self._buffer, self._used = b"", 0

    def read(self, size: int) -> bytes:
        while self._used == len(self._buffer):
            if self._decoder.eof:
                return b""
            some = self._data[self._at : self._at + _STEP_BYTES]
            if not some:
                raise _Broken("ends early")
            self._at += len(some)
            try:
                self._buffer, self._used = self._decoder.decompress(some), 0
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as e:
                raise _Broken(str(e)) from e
        found = self._buffer[self._used : self._used + size]
        self._used += len(found)
        return found

    def end(self) -> int:
        """Return where in the file the compressed data ends; reads on to there."""
        while self.read(_STEP_BYTES):
            pass
        return self._at - len(self._decoder.unused_data)


def _compressed(
    data: mmap.mmap, at: int
) -> tuple[Callable[[], int], "AbstractContextManager[IO[bytes] | _Stream]"]:
    """Return a function for the end of a compressed part, which is called last, and what the part holds."""
    head = data[at : at + 6]
    decoders: tuple[tuple[bytes, Callable[[], _Decoder]], ...] = (
        (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
        (b"BZh", bz2.BZ2Decompressor),
        (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)),
        (b"\x5d\0\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE)),
    )
    for magic, decoder in decoders:
        if head.startswith(magic):
            stream = _Stream(data, at, decoder())
            return stream.end, nullcontext(stream)
    for magic, program, end_of in ((_ZSTD, "zstd", _zstd_end), (_LZ4, "lz4", _lz4_end)):
        if head.startswith(magic):
            end = end_of(data, at)
            return partial(int, end), reading([program, "-dcq"], input=data[at:end])
    raise _Broken(f"unknown data at byte {at} ({head.hex(' ')})")


def _zstd_end(data: mmap.mmap, at: int) -> int:
    """Return where a zstd frame ends (RFC 8878, 3.1.1): its blocks say how long they are."""
    descriptor = data[at + 4] if at + 4 < len(data) else 0
    single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    at += 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3] + content
    while at + 3 <= len(data):
        block = int.from_bytes(data[at : at + 3], "little")
        at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)  # a run is one byte
        if block & 1:
            at += 4 * checksum
            break
    if at > len(data):
        raise _Broken("ends early")
    return at


def _lz4_end(data: mmap.mmap, at: int) -> int:
    """Return where data in lz4's legacy format ends: each block has its length before it, until something else is."""
    at += 4
    while at + 4 <= len(data):
        (length,) = struct.unpack("<I", data[at : at + 4])
        # LZ4_compressBound of the 8 MiB that a block holds; the magic number starts another frame
        if data[at : at + 4] == _LZ4:
            length = 0
        elif not 0 < length <= (8 << 20) + (8 << 20) // 255 + 16:
            break
        at += 4 + length
    if at > len(data):
        raise _Broken("ends early")
    return at
