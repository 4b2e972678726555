# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.vmlinux``."""

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrade.errors import DependencyMissing, Refusal, UpgradeError
from upgrade.kexec import vmlinux
from upgrade.kexec.image import KernelImage

KERNEL = b"\x7fELF\2\1\1" + bytes(range(256)) * 300 + b"relocations"


def sized(compressed: bytes, kernel: bytes = KERNEL) -> bytes:
    """Append what the kernel's build appends (``_with_size`` in scripts/Makefile.lib)."""
    return compressed + struct.pack("<I", len(kernel))


def piped(*command: str) -> Callable[[bytes], bytes]:
    return lambda kernel: subprocess.run(command, input=kernel, capture_output=True, check=True).stdout


# The options are those of scripts/Makefile.lib.
LIBRARY: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda kernel: gzip.compress(kernel),
    "bzip2": lambda kernel: sized(bz2.compress(kernel), kernel),
    "xz": lambda kernel: sized(lzma.compress(kernel, lzma.FORMAT_XZ, lzma.CHECK_CRC32), kernel),
    "lzma": lambda kernel: sized(lzma.compress(kernel, lzma.FORMAT_ALONE), kernel),
    "none": lambda kernel: kernel,
}
PROGRAMS: dict[str, tuple[str, ...]] = {
    "zstd": ("zstd", "-22", "--ultra", "-c"),
    "lz4": ("lz4", "-l", "-9", "-c"),
    "lzo": ("lzop", "-9", "-c"),
}


def compressed(name: str, kernel: bytes) -> bytes:
    if name in LIBRARY:
        return LIBRARY[name](kernel)
    if shutil.which(PROGRAMS[name][0]) is None:
        pytest.skip(f"{PROGRAMS[name][0]} is not installed")
    return sized(piped(*PROGRAMS[name])(kernel), kernel)


def image(payload: bytes) -> KernelImage:
    return KernelImage(Path("/boot/vmlinuz"), "6.12.107", "6.12.107 (someone)", 0x20F, payload)


COMPRESSIONS = [name for name in (*LIBRARY, *PROGRAMS) if name != "none"]
every_compression = pytest.mark.parametrize("name", COMPRESSIONS)


@pytest.mark.parametrize("name", [*COMPRESSIONS, "none"])
def test_round_trip(name: str) -> None:
    payload = image(compressed(name, KERNEL))
    assert vmlinux.decompress(payload) == KERNEL
    assert vmlinux.compression(payload) == name


@every_compression
def test_refuses_a_payload_that_ends_early(name: str) -> None:
    with pytest.raises(Refusal, match=r"/boot/vmlinuz: its \w+ payload is damaged") as caught:
        vmlinux.decompress(image(compressed(name, KERNEL)[:-20]))
    assert caught.value.hint == "install the kernel package again"


def test_refuses_a_payload_without_its_checksum() -> None:
    # All the data is there, but not the end of the stream that vouches for it.
    for whole in (lzma.compress(KERNEL, lzma.FORMAT_XZ)[:-12], bz2.compress(KERNEL)[:-4]):
        with pytest.raises(Refusal, match="its end is not where it should be"):
            vmlinux.decompress(image(sized(whole)))


@every_compression
def test_refuses_a_payload_with_another_length(name: str) -> None:
    payload = compressed(name, KERNEL)
    for wrong in (len(KERNEL) - 1, len(KERNEL) + 1, 0, 0xFFFFFFFF):
        with pytest.raises(Refusal, match="is damaged"):
            vmlinux.decompress(image(payload[:-4] + struct.pack("<I", wrong)))


@every_compression
def test_refuses_what_is_no_elf_file(name: str) -> None:
    with pytest.raises(Refusal, match="holds no ELF file"):
        vmlinux.decompress(image(compressed(name, b"text" * 100)))


def test_refuses_an_unknown_compression() -> None:
    with pytest.raises(Refusal, match=r"unknown compression of its payload \(ab cd 00"):
        vmlinux.decompress(image(b"\xab\xcd" + bytes(100)))


def test_names_the_package_of_a_missing_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("upgrade.process.PATH", str(tmp_path))
    monkeypatch.setattr("upgrade.kexec.vmlinux._TIMEOUT", 5.0)
    with pytest.raises(DependencyMissing) as caught:
        vmlinux.decompress(image(sized(b"\x28\xb5\x2f\xfd")))
    assert caught.value.hint == "apt-get install zstd"


@given(payload=st.binary(max_size=300))
@settings(deadline=None)
def test_random_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(UpgradeError):
        vmlinux.decompress(image(payload))


@given(name=st.sampled_from([n for n in LIBRARY if n != "none"]), data=st.data())
@settings(deadline=None)
def test_a_changed_byte_never_passes_unseen(name: str, data: st.DataObject) -> None:
    payload = bytearray(compressed(name, KERNEL))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    try:
        kernel = vmlinux.decompress(image(bytes(payload)))
    except UpgradeError:
        return
    if name != "lzma":  # which has no checksum
        assert kernel == KERNEL
    assert len(kernel) == len(KERNEL)
