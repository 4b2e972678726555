# SPDX-License-Identifier: MIT
"""The kernel inside a bzImage, decompressed.

``arch/x86/boot/compressed/Makefile`` makes the payload: the ELF file with its relocations, compressed, and,
except for gzip which carries it anyway, followed by the uncompressed size in four little-endian bytes. The
signatures are those of ``lib/decompress.c``.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Protocol

from upgrade.errors import Refusal
from upgrade.kexec.image import KernelImage
from upgrade.process import CommandFailed, run_bytes

_ELF = b"\x7fELF"
# No vmlinux comes near; a payload that claims more is damaged and must not fill the memory.
_MAXIMUM_BYTES = 1 << 30
_TIMEOUT = 120.0  # seconds; an emulated machine takes about five


class _Decoder(Protocol):
    """What the decompressors of the standard library have in common."""

    @property
    def eof(self) -> bool: ...


class _Corrupt(Exception):
    """The payload does not decompress."""


def decompress(image: KernelImage) -> bytes:
    """Return the ELF file in the payload of ``image``, with what follows it.

    :raises Refusal: where the compression is unknown or the payload is damaged
    :raises DependencyMissing: where the program for its compression is not installed
    """
    name, decoder = _decoder(image)
    size = _size(image.payload)
    try:
        if size > _MAXIMUM_BYTES:
            raise _Corrupt(f"claims to be {size} bytes long")
        kernel = decoder(image.payload, size)
        if len(kernel) != size:
            raise _Corrupt(f"gives {len(kernel)} bytes instead of {size}")
    except _Corrupt as e:
        raise _refusal(image, f"its {name} payload is damaged: {e}") from e
    if not kernel.startswith(_ELF):
        raise _refusal(image, f"its {name} payload holds no ELF file")
    return kernel


def compression(image: KernelImage) -> str:
    """Return the name of the payload's compression, ``none`` where it is a plain ELF file.

    :raises Refusal: where it is unknown
    """
    return _decoder(image)[0]


def _size(payload: bytes) -> int:
    if payload.startswith(_ELF):
        return len(payload)
    (size,) = struct.unpack("<I", payload[-4:])
    return int(size)


def _decoder(image: KernelImage) -> tuple[str, Callable[[bytes, int], bytes]]:
    decoders: tuple[tuple[bytes, str, Callable[[bytes, int], bytes]], ...] = (
        (_ELF, "none", lambda payload, size: payload),
        (b"\x1f\x8b", "gzip", _gzip),
        (b"BZh", "bzip2", _bzip2),
        (b"\xfd7zXZ\0", "xz", _xz),
        (b"\x5d\0\0", "lzma", _lzma),
        (b"\x28\xb5\x2f\xfd", "zstd", lambda payload, size: _filter("zstd", payload)),
        (b"\x02\x21\x4c\x18", "lz4", lambda payload, size: _filter("lz4", payload)),
        (b"\x89LZO\0\r\n\x1a\n", "lzo", lambda payload, size: _filter("lzop", payload)),
    )
    for magic, name, decoder in decoders:
        if image.payload.startswith(magic) and len(image.payload) >= len(magic) + 4:
            return name, decoder
    raise _refusal(image, f"unknown compression of its payload ({image.payload[:6].hex(' ')})")


# A limit of one byte more than expected makes a wrong length visible without reading on for ever.


def _gzip(payload: bytes, size: int) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    return _whole(decoder, lambda: decoder.decompress(payload, size + 1))


def _bzip2(payload: bytes, size: int) -> bytes:
    decoder = bz2.BZ2Decompressor()
    return _whole(decoder, lambda: decoder.decompress(payload[:-4], size + 1))


def _xz(payload: bytes, size: int) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    return _whole(decoder, lambda: decoder.decompress(payload[:-4], size + 1))


def _lzma(payload: bytes, size: int) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE)
    return _whole(decoder, lambda: decoder.decompress(payload[:-4], size + 1))


def _whole(decoder: _Decoder, decode: Callable[[], bytes]) -> bytes:
    try:
        kernel = decode()
    except (zlib.error, lzma.LZMAError, OSError, ValueError) as e:
        raise _Corrupt(str(e)) from e
    if not decoder.eof:
        raise _Corrupt("its end is not where it should be")
    return kernel


def _filter(program: str, payload: bytes) -> bytes:
    """Decompress with ``PROGRAM -dc``, which would complain of the size behind the data."""
    try:
        return run_bytes([program, "-dc"], input=payload[:-4], timeout=_TIMEOUT)
    except CommandFailed as e:
        raise _Corrupt(e.message) from e


def _refusal(image: KernelImage, reason: str) -> Refusal:
    return Refusal(reason, subject=str(image.path), hint="install the kernel package again")
