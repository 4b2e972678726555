# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.image``."""

import struct
from pathlib import Path

import pytest
from builders.kernel import RELEASE, bzimage
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from upgrade.errors import Refusal, UpgradeError
from upgrade.kexec.image import KernelImage

PAYLOAD = b"\x28\xb5\x2f\xfdsomething compressed"


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    return path


def refused(path: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        KernelImage.open(path)
    assert caught.value.subject == str(path)
    assert caught.value.hint
    return caught.value


def test_reads_release_and_payload(tmp_path: Path) -> None:
    image = KernelImage.open(write(tmp_path, bzimage(PAYLOAD)))
    assert image.release == RELEASE
    assert image.version == f"{RELEASE} (debian-kernel@lists.debian.org) #1 SMP"
    assert image.payload == PAYLOAD
    assert image.protocol == 0x20F


def test_no_setup_sectors_mean_four(tmp_path: Path) -> None:
    content = bytearray(bzimage(PAYLOAD, sectors=39))
    del content[5 * 512 : 40 * 512]
    content[0x1F1] = 0
    struct.pack_into("<H", content, 0x20E, 0x600 - 0x200)
    content[0x600 : 0x600 + 7] = b"5.10.1\0"
    image = KernelImage.open(write(tmp_path, bytes(content) + bytes(4096)))
    assert (image.release, image.payload) == ("5.10.1", PAYLOAD)


def test_a_signature_behind_the_kernel_does_not_matter(tmp_path: Path) -> None:
    assert KernelImage.open(write(tmp_path, bzimage(PAYLOAD) + b"signature")).payload == PAYLOAD


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "vmlinuz").message


def test_refuses_a_directory(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path).message


def test_refuses_a_device() -> None:
    assert refused(Path("/dev/zero")).message == "no regular file"


@pytest.mark.parametrize("removed", [1, 16, 0x2CC, 20000])
def test_refuses_a_truncated_file(tmp_path: Path, removed: int) -> None:
    content = bzimage(PAYLOAD * 1000)
    error = refused(write(tmp_path, content[:-removed]))
    assert error.message.startswith("truncated")
    assert str(len(content) - removed) in error.message


def test_refuses_a_file_shorter_than_a_header(tmp_path: Path) -> None:
    assert "too short (0 bytes)" in refused(write(tmp_path, b"")).message
    assert "too short" in refused(write(tmp_path, bzimage(PAYLOAD)[:0x300])).message


def test_refuses_an_elf_kernel_with_the_reason(tmp_path: Path) -> None:
    error = refused(write(tmp_path, b"\x7fELF\2\1\1" + bytes(8192)))
    assert "which kexec_file_load does not take" in error.message


def test_refuses_a_unified_kernel_image_with_the_remedy(tmp_path: Path) -> None:
    error = refused(write(tmp_path, b"MZ" + bytes(8192)))
    assert error.hint is not None
    assert "objcopy" in error.hint


def test_refuses_what_is_no_kernel(tmp_path: Path) -> None:
    assert "no bzImage" in refused(write(tmp_path, b"#!/bin/sh\n" * 1000)).message


def test_refuses_an_old_boot_protocol(tmp_path: Path) -> None:
    assert "protocol 2.10" in refused(write(tmp_path, bzimage(PAYLOAD, protocol=0x20A))).message


@pytest.mark.parametrize("content", [bzimage(PAYLOAD, xloadflags=0), bzimage(PAYLOAD, loadflags=0)])
def test_refuses_a_kernel_without_a_64_bit_entry(tmp_path: Path, content: bytes) -> None:
    assert "no 64-bit bzImage" in refused(write(tmp_path, content)).message


def test_refuses_a_header_without_release(tmp_path: Path) -> None:
    content = bytearray(bzimage(PAYLOAD))
    struct.pack_into("<H", content, 0x20E, 0)
    assert "names no release" in refused(write(tmp_path, bytes(content))).message
    assert "does not point to a release" in refused(write(tmp_path, bzimage(PAYLOAD, release=""))).message


@given(content=st.binary(max_size=9000))
@example(content=b"MZ")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    refused(write(tmp_path, content))


@given(at=st.integers(0x1F0, 0x260), value=st.integers(0, 255))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_is_read_or_refused(tmp_path: Path, at: int, value: int) -> None:
    content = bytearray(bzimage(PAYLOAD))
    content[at] = value
    path = write(tmp_path, bytes(content))
    try:
        image = KernelImage.open(path)
    except UpgradeError:
        refused(path)
    else:
        assert image.release
        assert len(image.payload) == struct.unpack_from("<I", content, 0x24C)[0]
