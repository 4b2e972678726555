# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.pe``: signatures are found, and nothing else is taken for one."""

import gzip
import struct
from pathlib import Path

import pytest
from builders.kernel import bzimage, signed

from upgrade.kexec import pe
from upgrade.kexec.image import KernelImage

IMAGE = bzimage(gzip.compress(b"kernel"))
CERTIFICATES = 0x40 + 24 + 112 + 8 * 4


def size(tmp_path: Path, content: bytes) -> int:
    file = tmp_path / "vmlinuz"
    file.write_bytes(content)
    return pe.certificate_bytes(file)


def patched(at: int, form: str, *values: int) -> bytes:
    image = bytearray(signed(IMAGE))
    struct.pack_into(form, image, at, *values)
    return bytes(image)


def test_a_signed_kernel(tmp_path: Path) -> None:
    assert size(tmp_path, signed(IMAGE, b"x" * 1234)) == 1234
    assert KernelImage.open(tmp_path / "vmlinuz").release  # it is a bzImage still


def test_the_older_header(tmp_path: Path) -> None:
    image = bytearray(patched(0x40 + 24, "<H", 0x10B))
    image[0x40 + 24 + 92 : 0x40 + 24 + 96] = struct.pack("<I", 6)
    struct.pack_into("<II", image, 0x40 + 24 + 96 + 8 * 4, len(image) - 64, 64)
    assert size(tmp_path, bytes(image)) == 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"MZ",
        IMAGE,
        signed(IMAGE)[:-1],  # cut off
        patched(CERTIFICATES, "<II", 0, 0),
        patched(0x40 + 24 + 108, "<I", 4),  # too few directories
        patched(0x40 + 24, "<H", 0x107),
        patched(0x3C, "<I", 0xFFFFFFFF),
        patched(0x40, "<I", 0),
    ],
)
def test_what_is_not_signed(tmp_path: Path, content: bytes) -> None:
    assert size(tmp_path, content) == 0
