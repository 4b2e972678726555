# SPDX-License-Identifier: MIT
"""Where vDSOs are found: inside a kernel file, and in our own memory.

A kernel carries its images as page-aligned data; ``vdso2c`` makes them, and ``struct vdso_image``
(``arch/x86/include/asm/vdso.h``) describes each. The one that runs is mapped into every program, ours too,
but only as wide as we are: the 32-bit one is taken from the file of the running kernel.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile

from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.kexec.image import KernelImage
from upgrade.kexec.vdso import UNKNOWN_AREA, DataArea, DataPage, VdsoImage, Vdsos, name_pages, parse
from upgrade.kexec.vdso_code import PAGE_BYTES
from upgrade.kexec.vmlinux import decompress

NOBODY_ASKED = "no container runs a program of 32 bits"
_LARGEST_BYTES = 16 * PAGE_BYTES
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*\[(vdso|vvar|vvar_vclock)\]$", re.MULTILINE)
# The words of struct vdso_image in which sym_vvar_start and its pages may lie (its first two are data, size).
_STRUCTURE_WORDS = 16


def in_kernel(path: Path) -> Vdsos:
    """Return the vDSOs of the kernel file at ``path``.

    :raises Refusal: where it is no kernel, is damaged, or holds no 64-bit vDSO
    """
    image = KernelImage.open(path)
    try:
        return in_vmlinux(decompress(image), image.release)
    except Refusal as e:
        raise Refusal(e.message, subject=str(path), hint=e.hint) from e


def in_vmlinux(vmlinux: bytes, release: str) -> Vdsos:
    """Return the vDSOs in the bytes of an uncompressed kernel.

    :raises Refusal: where there is no 64-bit one
    """
    images: dict[int, VdsoImage] = {}
    for offset in _aligned_elf_files(vmlinux):
        try:
            image = _embedded(vmlinux, offset)
        except Refusal:
            continue  # the purgatory and other ELF files
        images.setdefault(image.bits, image)
    if 64 not in images:
        raise Refusal("the kernel holds no 64-bit vDSO", hint="choose another kernel")
    compat = images.get(32)
    if compat and compat.data.size_bytes is None:
        # vdso-layout.lds.S is one for both widths, so their data areas are of one size.
        compat = replace(compat, data=images[64].data)
    return Vdsos(release, images[64], compat)


def running(host: Host, *, compat: bool = True) -> Vdsos:
    """Return the vDSOs of the kernel that runs.

    :param compat: whether anybody wants to know of the one for programs of 32 bits, for which a kernel has to be
        decompressed
    :raises UpgradeError: where our own memory cannot be read
    :raises Refusal: where this kernel maps no vDSO
    """
    try:
        mappings = {name: range(int(a, 16), int(b, 16)) for a, b, name in _mappings(host)}
        code = mappings.get("vdso")
        if code is None:
            raise Refusal("the running kernel maps no vDSO", hint="boot it without vdso=0")
        with host.path("/proc/self/mem").open("rb", buffering=0) as memory:
            memory.seek(code.start)
            content = memory.read(len(code))
    except OSError as e:
        raise UpgradeError(f"cannot read our own memory: {e.strerror}", subject="/proc/self/mem") from e
    native = parse(content, data=_mapped_area(mappings))
    release = host.release()
    if not compat:
        return Vdsos(release, native, None, NOBODY_ASKED)
    found, unknown = _running_compat(host, release, native)
    return Vdsos(release, native, found, unknown)


def _mappings(host: Host) -> list[tuple[str, str, str]]:
    return _MAPPING.findall(host.read("/proc/self/maps"))


def _mapped_area(mappings: dict[str, range]) -> DataArea:
    """Return the data area as CRIU counts it (vdso_parse_maps() in criu/vdso.c): both mappings together."""
    vvar = mappings.get("vvar")
    if vvar is None:
        return UNKNOWN_AREA
    clocks = mappings.get("vvar_vclock")
    size = len(vvar) + (len(clocks) if clocks else 0)
    before = vvar.start < mappings["vdso"].start
    return DataArea(size, before, name_pages(size, split=clocks is not None) if before else (), "maps")


def _running_compat(host: Host, release: str, native: VdsoImage) -> tuple[VdsoImage | None, str | None]:
    """Return the running 32-bit image, or why it is unknown."""
    for path in (f"/boot/vmlinuz-{release}", f"/usr/lib/modules/{release}/vmlinuz"):
        if not host.exists(path):
            continue
        try:
            installed = in_kernel(host.path(path))
        except UpgradeError as e:
            return None, str(e)
        if installed.native.build_id != native.build_id:
            return None, f"{path} is another build than the kernel that runs"
        return installed.compat, None
    return None, f"the file of the running kernel is not installed (/boot/vmlinuz-{release})"


def _aligned_elf_files(vmlinux: bytes) -> Iterator[int]:
    """Yield the offsets of ELF headers at the start of a page (``__aligned(PAGE_SIZE)`` in vdso2c.h)."""
    for at in range(PAGE_BYTES, len(vmlinux), PAGE_BYTES):
        if vmlinux.startswith(b"\x7fELF", at):
            yield at


def _embedded(vmlinux: bytes, offset: int) -> VdsoImage:
    structure = _find_structure(vmlinux, offset)
    if structure:
        return parse(vmlinux[offset : offset + structure.size_bytes], data=structure.area)
    # vdso2c rounds the length of the file up to pages; it ends with its section headers.
    size = _file_bytes(vmlinux[offset : offset + _LARGEST_BYTES])
    return parse(vmlinux[offset : offset + size])


def _file_bytes(content: bytes) -> int:
    wide = content[4:5] == b"\2"
    start, entry, count = (0x28, 0x3A, 0x3C) if wide else (0x20, 0x2E, 0x30)
    try:
        (headers,) = struct.unpack_from("<Q" if wide else "<I", content, start)
        (size,) = struct.unpack_from("<H", content, entry)
        (number,) = struct.unpack_from("<H", content, count)
        end = int(headers + size * number)
    except struct.error as e:
        raise Refusal("no vDSO: truncated") from e
    if not 0 < end <= len(content):
        raise Refusal("no vDSO: truncated, or too long")
    return -(-end // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class _Structure:
    """What ``struct vdso_image`` says; since v6.15 it says nothing of data pages, and ``area`` is none."""

    size_bytes: int
    area: DataArea | None


def _find_structure(vmlinux: bytes, offset: int) -> _Structure | None:
    """Return the structure that points to the image at ``offset`` of the file."""
    address = _address(vmlinux, offset)
    if address is None:
        return None
    pointer = struct.pack("<Q", address)
    at = vmlinux.find(pointer)
    while at >= 0:
        if at % 8 == 0 and at + 8 * _STRUCTURE_WORDS <= len(vmlinux):
            _, size, *words = struct.unpack_from(f"<QQ{_STRUCTURE_WORDS - 2}q", vmlinux, at)
            if 0 < size <= _LARGEST_BYTES and size % PAGE_BYTES == 0:
                return _Structure(size, _area_of_words(words))
        at = vmlinux.find(pointer, at + 1)
    return None


def _address(vmlinux: bytes, offset: int) -> int | None:
    """Return the address at which the kernel is linked to find the byte at ``offset`` of its file."""
    try:
        for segment in ELFFile(BytesIO(vmlinux)).iter_segments("PT_LOAD"):
            if 0 <= offset - segment["p_offset"] < segment["p_filesz"]:
                return int(segment["p_vaddr"] + offset - segment["p_offset"])
    except Exception as e:  # pyelftools answers damaged files with many kinds of exceptions
        raise Refusal(f"the kernel is a damaged ELF file ({type(e).__name__}: {e})") from e
    return None


def _area_of_words(words: list[int]) -> DataArea | None:
    """Return the data area of a structure's words: ``sym_vvar_start`` and then the pages, all negative."""
    found = [w for w in words if -_LARGEST_BYTES <= w < 0 and w % PAGE_BYTES == 0]
    if not found or found[0] != min(found):
        return None
    size = -found[0]
    if (
        len(found) == 5
    ):  # sym_vvar_start, _vvar_page, _pvclock_page, _hvclock_page, _timens_page (v5.6 to v6.12)
        named = zip(found[1:], ("time", "pvclock", "hvclock", "timens"), strict=True)
        pages = tuple(DataPage(name, offset) for offset, name in sorted(named))
    else:
        pages = name_pages(size, split=None)
    return DataArea(size, True, pages, "struct vdso_image")
