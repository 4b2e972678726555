# SPDX-License-Identifier: MIT
"""The kernel image that kexec enters: its setup header, release and payload.

Only what ``kexec_file_load(2)`` takes on x86-64 is accepted: a 64-bit bzImage. The offsets are those of
``Documentation/arch/x86/boot.rst``, the conditions those of ``bzImage64_probe()`` in
``arch/x86/kernel/kexec-bzimage64.c``. What is inside the payload is the business of ``vmlinux.py``.
"""

import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from upgrade.errors import Refusal

# Everything we need of the header lies in its first page; the real-mode code is never shorter than that.
_HEADER_BYTES = 0x1000
_SECTOR_BYTES = 512

_BOOT_FLAG = 0xAA55
_MINIMUM_PROTOCOL = 0x20C  # the first with xloadflags (in v3.8)
_LOADED_HIGH = 1 << 0
_XLF_KERNEL_64 = 1 << 0

_HINT = "give the file that the distribution installs as /boot/vmlinuz-VERSION"


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A bzImage. ``payload`` is the compressed kernel, with what the kernel's build appends to it."""

    path: Path
    release: str
    version: str
    protocol: int
    payload: bytes = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "KernelImage":
        """Read the image at ``path``.

        :raises Refusal: where it cannot be read, is no 64-bit bzImage, or is shorter than its header says
        """
        try:
            with path.open("rb") as file:
                return _read(path, file)
        except OSError as e:
            raise _refusal(path, f"cannot be read: {e.strerror}") from e


@dataclass(frozen=True, slots=True)
class _Header:
    """The fields of the setup header that we use; offsets and lengths in bytes from the file's start."""

    protocol: int
    version_at: int
    protected_at: int
    protected_bytes: int
    payload_at: int
    payload_bytes: int


def _read(path: Path, file: BinaryIO) -> KernelImage:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, "no regular file")
    head = file.read(_HEADER_BYTES)
    header = _header(path, head)
    end = max(header.payload_at + header.payload_bytes, header.protected_at + header.protected_bytes)
    if status.st_size < end:
        raise _refusal(
            path,
            f"truncated: its header speaks of {end} bytes, the file has {status.st_size}",
            hint="install the kernel package again, or copy the file again",
        )
    version = _version(path, file, header.version_at)
    file.seek(header.payload_at)
    payload = file.read(header.payload_bytes)
    return KernelImage(path, version.split()[0], version, header.protocol, payload)


def _header(path: Path, head: bytes) -> _Header:
    if head.startswith(b"\x7fELF"):
        raise _refusal(path, "an uncompressed ELF kernel, which kexec_file_load does not take on x86")
    if len(head) < _HEADER_BYTES:
        raise _refusal(path, f"no kernel: too short ({len(head)} bytes)")
    (flag,) = struct.unpack_from("<H", head, 0x1FE)
    if flag != _BOOT_FLAG or head[0x202:0x206] != b"HdrS":
        raise _no_bzimage(path, head)
    (protocol,) = struct.unpack_from("<H", head, 0x206)
    if protocol < _MINIMUM_PROTOCOL:
        raise _refusal(path, f"boot protocol {protocol >> 8}.{protocol & 255:02} is older than 2.12")
    (xloadflags,) = struct.unpack_from("<H", head, 0x236)
    if not head[0x211] & _LOADED_HIGH or not xloadflags & _XLF_KERNEL_64:
        raise _refusal(path, "no 64-bit bzImage: it has no 64-bit entry point")
    (units,) = struct.unpack_from("<I", head, 0x1F4)
    (version,) = struct.unpack_from("<H", head, 0x20E)
    offset, length = struct.unpack_from("<II", head, 0x248)
    if not version or not length:
        raise _refusal(path, "its setup header names no release or no payload")
    protected_at = ((head[0x1F1] or 4) + 1) * _SECTOR_BYTES
    return _Header(protocol, version + 0x200, protected_at, units * 16, protected_at + offset, length)


def _version(path: Path, file: BinaryIO, offset: int) -> str:
    """Return the version string: ``6.12.107+deb13-cloud-amd64 (builder) #1 SMP …``."""
    file.seek(offset)
    text, end, _ = file.read(512).partition(b"\0")
    if not end or not text.strip() or not text.isascii():
        raise _refusal(path, "its setup header does not point to a release")
    return text.decode("ascii")


def _no_bzimage(path: Path, head: bytes) -> Refusal:
    if head.startswith(b"MZ"):
        return _refusal(
            path,
            "a PE program without a Linux setup header (a unified kernel image?)",
            hint="take the kernel out of it: objcopy -O binary --only-section=.linux FILE VMLINUZ",
        )
    return _refusal(path, "no bzImage: it has no Linux setup header")


def _refusal(path: Path, reason: str, *, hint: str = _HINT) -> Refusal:
    return Refusal(reason, subject=str(path), hint=hint)
