# SPDX-License-Identifier: MIT
"""Kernel images: a bzImage around a payload, and a vmlinux around vDSOs."""

import struct
from collections.abc import Sequence

PAGE = 4096
RELEASE = "6.12.107+deb13-cloud-amd64"
LINKED_AT = 0xFFFFFFFF82000000
DATA_AT = 0x1000


def bzimage(
    payload: bytes,
    *,
    release: str = f"{RELEASE} (debian-kernel@lists.debian.org) #1 SMP",
    protocol: int = 0x20F,
    sectors: int = 39,
    xloadflags: int = 0x7F,
    loadflags: int = 1,
) -> bytes:
    """Return a bzImage, its payload 0x2cc bytes into the protected-mode code as Debian's is."""
    setup = bytearray((sectors + 1) * 512)
    protected = b"\x90" * 0x2CC + payload
    protected += bytes(-len(protected) % 16)
    setup[0x1F1] = sectors
    struct.pack_into("<I", setup, 0x1F4, len(protected) // 16)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x3000 - 0x200)
    setup[0x211] = loadflags
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<II", setup, 0x248, 0x2CC, len(payload))
    setup[0x3000 : 0x3000 + len(release) + 1] = release.encode() + b"\0"
    return bytes(setup) + protected


def vmlinux(images: Sequence[bytes], *, structures: Sequence[Sequence[int]] = ()) -> bytes:
    """Return an ELF kernel with ``images`` at the starts of pages.

    :param structures: for each of the first images the words of its ``struct vdso_image`` after the pointer
    """
    data = bytearray(b"".join(image + bytes(-len(image) % PAGE) for image in images))
    starts = [sum(len(i) + -len(i) % PAGE for i in images[:n]) for n in range(len(images))]
    for start, words in zip(starts, structures, strict=False):
        data += struct.pack(f"<Q{len(words)}q", LINKED_AT + start, *words)
    data += bytes(256)
    header = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, LINKED_AT, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = (1, 5, DATA_AT, LINKED_AT, 0x1000000, len(data), len(data), PAGE)
    header += struct.pack("<IIQQQQQQ", *segment)
    return header.ljust(DATA_AT, b"\0") + bytes(data)


def signed(image: bytes, certificate: bytes = b"\x30\x82" * 32) -> bytes:
    """Return a bzImage with the PE headers of an EFI program and a signature at its end."""
    data = bytearray(image)
    data[0:2] = b"MZ"
    struct.pack_into("<I", data, 0x3C, 0x40)
    data[0x40:0x44] = b"PE\0\0"
    struct.pack_into("<H", data, 0x40 + 24, 0x20B)
    struct.pack_into("<I", data, 0x40 + 24 + 108, 6)
    struct.pack_into("<II", data, 0x40 + 24 + 112 + 8 * 4, len(data), len(certificate))
    return bytes(data) + certificate
