# SPDX-License-Identifier: MIT
"""A vDSO: the shared object that the kernel maps into every program, and the data pages beside it.

Here is what one is; where they are found is in ``vdso_find.py``, what two of them mean for a restored program
in ``vdso_compare.py``.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from elftools.elf.elffile import ELFFile

from upgrade.errors import Refusal
from upgrade.kexec import vdso_code
from upgrade.kexec.vdso_code import RandomState

GETRANDOM = "__vdso_getrandom"

_MACHINES = {("EM_X86_64", 64): 64, ("EM_386", 32): 32}
_VERSION_NOTE = 0  # arch/x86/entry/vdso/*note.S: LINUX_VERSION_CODE
_BUILD_SALT_NOTE = 0x100  # include/linux/build-salt.h; Debian puts the release there
_BUILD_ID_NOTE = 3


@dataclass(frozen=True, slots=True)
class VdsoSymbol:
    """An exported function. ``value`` is its distance from the image's start, in bytes."""

    name: str
    value: int
    size: int
    version: str | None


@dataclass(frozen=True, slots=True)
class DataPage:
    """A page of the data area. ``offset`` is counted from the image's start, in bytes; negative before it."""

    name: str
    offset: int


@dataclass(frozen=True, slots=True)
class DataArea:
    """The data pages (``[vvar]`` and ``[vvar_vclock]``) of a vDSO.

    ``source`` says how it is known: ``maps``, ``struct vdso_image``, ``code`` or ``unknown``; where it is
    unknown the size is, too.
    """

    size_bytes: int | None
    before_code: bool
    pages: tuple[DataPage, ...]
    source: str


UNKNOWN_AREA = DataArea(None, True, (), "unknown")


@dataclass(frozen=True, slots=True)
class VdsoImage:
    """One image. ``content`` is what is mapped, ``size_bytes`` of it; ``code`` its ``.text`` in it."""

    bits: int
    size_bytes: int
    symbols: Mapping[str, VdsoSymbol]
    data: DataArea
    build_id: str | None
    release: str | None
    random_state: RandomState | None
    content: bytes = field(repr=False)
    code: tuple[int, int]
    patched: tuple[range, ...] = field(repr=False)

    def bytes_of(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to ``end``, those that a kernel patches at boot set to zero."""
        found = bytearray(self.content[start:end])
        for place in self.patched:
            for at in range(max(place.start, start), min(place.stop, end)):
                found[at - start] = 0
        return bytes(found)

    def bytes_of_symbol(self, symbol: VdsoSymbol) -> bytes:
        """Return the code of ``symbol``, as :meth:`bytes_of` does."""
        return self.bytes_of(symbol.value, symbol.value + symbol.size)

    def what_is_at(self, offset: int) -> str | None:
        """Return ``SYMBOL+0xDISTANCE`` for the exported function around ``offset``, if there is one."""
        for symbol in self.symbols.values():
            if symbol.value <= offset < symbol.value + symbol.size:
                distance = offset - symbol.value
                return f"{symbol.name}+{distance:#x}" if distance else symbol.name
        return None


@dataclass(frozen=True, slots=True)
class Vdsos:
    """The vDSOs of a kernel: ``native`` for 64-bit programs, ``compat`` for 32-bit ones.

    Where ``compat`` is missing, ``compat_unknown`` says why it could not be read; without a reason the kernel
    has none.
    """

    release: str
    native: VdsoImage
    compat: VdsoImage | None
    compat_unknown: str | None = None

    def image(self, bits: int) -> VdsoImage | None:
        """Return the image for programs of ``bits`` bits."""
        return self.native if bits == 64 else self.compat


def parse(content: bytes, *, data: DataArea | None = None) -> VdsoImage:
    """Return the vDSO that begins with ``content[0]``.

    :param content: the whole mapping; its length is the image's size
    :param data: the data area where it is known from elsewhere, else it is derived from the code
    :raises Refusal: where it is no vDSO
    """
    try:
        return _parse(content, data)
    except Refusal:
        raise
    except Exception as e:  # pyelftools answers damaged files with many kinds of exceptions
        raise _refusal(f"damaged ({type(e).__name__}: {e})") from e


def _parse(content: bytes, data: DataArea | None) -> VdsoImage:
    elf = ELFFile(BytesIO(content))
    bits = _MACHINES.get((elf["e_machine"], elf.elfclass))
    if bits is None or elf["e_type"] != "ET_DYN":
        raise _refusal("no shared object for x86")
    base = _base(elf)
    symbols = {symbol.name: symbol for symbol in _symbols(elf, base)}
    if not any(name.startswith(("__vdso_", "__kernel_")) for name in symbols):
        raise _refusal("exports no vDSO function")
    code = _section(elf, ".text")
    notes = list(_notes(elf, content))
    getrandom = symbols.get(GETRANDOM) if bits == 64 else None
    if data is None:
        data = _area_of_code(content, code, bits)
    return VdsoImage(
        bits=bits,
        size_bytes=len(content),
        symbols=symbols,
        data=data,
        build_id=next((d.hex() for n, t, d in notes if (n, t) == (b"GNU", _BUILD_ID_NOTE)), None),
        release=_release(notes),
        random_state=vdso_code.random_state(_slice(content, getrandom)) if getrandom else None,
        content=content,
        code=code,
        patched=vdso_code.alternatives(content, _section(elf, ".altinstructions"), code),
    )


def _base(elf: ELFFile) -> int:
    for segment in elf.iter_segments("PT_LOAD"):
        return int(segment["p_vaddr"])
    raise _refusal("has no loadable segment")


def _section(elf: ELFFile, name: str) -> tuple[int, int]:
    section = elf.get_section_by_name(name)
    return (section["sh_offset"], section["sh_offset"] + section["sh_size"]) if section else (0, 0)


def _slice(content: bytes, symbol: VdsoSymbol) -> bytes:
    return content[symbol.value : symbol.value + symbol.size]


def _symbols(elf: ELFFile, base: int) -> Iterator[VdsoSymbol]:
    # Any: whether elftools has types depends on its version.
    table: Any = elf.get_section_by_name(".dynsym")
    if table is None:
        raise _refusal("has no symbol table")
    versions = _versions(elf)
    for number, symbol in enumerate(table.iter_symbols()):
        if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF":
            version = versions.get(number)
            yield VdsoSymbol(symbol.name, symbol["st_value"] - base, symbol["st_size"], version)


def _versions(elf: ELFFile) -> dict[int, str]:
    """Return the version of each symbol, by its number."""
    of_symbols: Any = elf.get_section_by_name(".gnu.version")
    definitions: Any = elf.get_section_by_name(".gnu.version_d")
    if of_symbols is None or definitions is None:
        return {}
    names = {entry["vd_ndx"]: next(aux).name for entry, aux in definitions.iter_versions()}
    indexes = (of_symbols.get_symbol(number)["ndx"] for number in range(of_symbols.num_symbols()))
    return {number: names[index] for number, index in enumerate(indexes) if index in names}


def _notes(elf: ELFFile, content: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield name, type and description of each note."""
    for segment in elf.iter_segments("PT_NOTE"):
        at, end = segment["p_offset"], segment["p_offset"] + segment["p_filesz"]
        while at + 12 <= min(end, len(content)):
            name, description, kind = struct.unpack_from("<III", content, at)
            middle = at + 12 + (name + 3) // 4 * 4
            yield (
                content[at + 12 : at + 12 + name].rstrip(b"\0"),
                kind,
                content[middle : middle + description],
            )
            at = middle + (description + 3) // 4 * 4


def _release(notes: list[tuple[bytes, int, bytes]]) -> str | None:
    """Return the build salt where it continues the version (Debian puts the release there), else the version.

    A salt alone proves nothing: builders forget it and go on with another kernel's.
    """
    of_linux = {kind: description for name, kind, description in notes if name == b"Linux"}
    salt = of_linux.get(_BUILD_SALT_NOTE, b"").rstrip(b"\0").decode("ascii", "replace")
    code = of_linux.get(_VERSION_NOTE, b"")
    if len(code) != 4:
        return None
    version = f"{code[2]}.{code[1]}.{code[0]}"
    return salt if salt.startswith(version) else version


def _area_of_code(content: bytes, code: tuple[int, int], bits: int) -> DataArea:
    start = vdso_code.first_data_page(content, code) if bits == 64 else None
    if start is None:
        return UNKNOWN_AREA
    return DataArea(-start, True, name_pages(-start, split=None), "code")


def name_pages(size_bytes: int, *, split: bool | None) -> tuple[DataPage, ...]:
    """Return the pages of a data area that lies before its image, with the names of the kernel's source.

    :param split: whether the clock pages are a mapping of their own (since Linux commit e93d2521b27f
        ("x86/vdso: Split virtual clock pages into dedicated mapping") (in v6.13)); unknown: none
    """
    pages = size_bytes // vdso_code.PAGE_BYTES
    names = [f"page {number}" for number in range(pages)]
    if pages == 6:  # include/vdso/datapage.h, enum vdso_pages, and the clock pages (since v6.15)
        names = ["time", "timens", "rng", "arch", "pvclock", "hvclock"]
    elif pages == 4 and split is not None:  # arch/x86/entry/vdso/vdso-layout.lds.S
        names = (
            ["time", "timens", "pvclock", "hvclock"] if split else ["time", "pvclock", "hvclock", "timens"]
        )
    return tuple(
        DataPage(name, number * vdso_code.PAGE_BYTES - size_bytes) for number, name in enumerate(names)
    )


def _refusal(reason: str) -> Refusal:
    return Refusal(f"no vDSO: {reason}")
