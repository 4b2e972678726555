# SPDX-License-Identifier: MIT
"""vDSO-like ELF files: functions at chosen addresses, versions, notes and alternatives.

One segment, addresses equal to file offsets, the section headers last: as ``vdso-layout.lds.S`` and
``objcopy -S`` leave them.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PAGE = 4096
TEXT_AT = 0x800
TEXT_END = 0xE00
TYPES = {".dynsym": 11, ".dynstr": 3, ".gnu.version": 0x6FFFFFFF, ".gnu.version_d": 0x6FFFFFFD, ".note": 7}

# The functions of a plausible image, each of 32 bytes; tests change what they need.
FUNCTIONS_64 = {
    "__vdso_gettimeofday": 0x800,
    "__vdso_time": 0x840,
    "__vdso_clock_gettime": 0x880,
    "clock_gettime": 0x880,
    "__vdso_clock_getres": 0x8C0,
    "clock_getres": 0x8C0,
    "__vdso_getcpu": 0x900,
    "__vdso_getrandom": 0x940,
}
FUNCTIONS_32 = {
    "__kernel_vsyscall": 0x800,
    "__kernel_sigreturn": 0x820,
    "__kernel_rt_sigreturn": 0x840,
    "__vdso_clock_gettime": 0x880,
    "__vdso_clock_getres": 0x8C0,
}


@dataclass(frozen=True)
class VdsoBuilder:
    """What a vDSO shall contain. ``code`` is written to the addresses that are its keys."""

    bits: int = 64
    functions: Mapping[str, int] = field(default_factory=lambda: FUNCTIONS_64)
    sizes: Mapping[str, int] = field(default_factory=dict)
    code: Mapping[int, bytes] = field(default_factory=dict)
    alternatives: Iterable[tuple[int, int]] = ()
    version: tuple[int, int, int] = (6, 12, 107)
    salt: str = "6.12.107+deb13-cloud-amd64"
    build_id: bytes = bytes(range(20))
    pages: int = 2

    def build(self) -> bytes:
        """Return the image, as long as its pages."""
        names = list(self.functions)
        strings = b"\0" + b"".join(name.encode() + b"\0" for name in [*names, "LINUX_2.6"])
        version_name = strings.index(b"LINUX_2.6\0")
        versions = struct.pack(f"<{len(names) + 1}H", 0, *[2] * len(names))
        sections: dict[str, tuple[int, bytes]] = {}
        at = 0x200
        for name, content in (
            (".dynsym", self._symbols(names, strings)),
            (".dynstr", strings),
            (".gnu.version", versions),
            (".gnu.version_d", struct.pack("<HHHHIIIII", 1, 0, 2, 1, 0, 20, 0, version_name, 0)),
            (".note", self._notes()),
        ):
            sections[name] = (at, content)
            at += len(content) + -len(content) % 8
        assert at <= TEXT_AT
        sections[".text"] = (TEXT_AT, self._text())
        sections[".altinstructions"] = (TEXT_END, self._alternatives())
        return self._assemble(sections)

    def _symbols(self, names: list[str], strings: bytes) -> bytes:
        table = bytes(24 if self.bits == 64 else 16)
        for name in names:
            place = strings.index(b"\0" + name.encode() + b"\0") + 1
            value, size = self.functions[name], self.sizes.get(name, 32)
            if self.bits == 64:
                table += struct.pack("<IBBHQQ", place, 0x12, 0, 6, value, size)
            else:
                table += struct.pack("<IIIBBH", place, value, size, 0x12, 0, 6)
        return table

    def _notes(self) -> bytes:
        major, minor, patch = self.version
        notes = (
            (b"Linux", 0, bytes([patch, minor, major, 0])),
            (b"Linux", 0x100, self.salt.encode() + b"\0"),
        )
        return b"".join(_note(*note) for note in (*notes, (b"GNU", 3, self.build_id)))

    def _text(self) -> bytes:
        text = bytearray(b"\x90" * (TEXT_END - TEXT_AT))
        for start, code in self.code.items():
            text[start - TEXT_AT : start - TEXT_AT + len(code)] = code
        return bytes(text)

    def _alternatives(self) -> bytes:
        table = b""
        for start, length in self.alternatives:
            table += struct.pack("<iiIBB", start - TEXT_END - len(table), 0, 0, length, 0)
        return table

    def _assemble(self, sections: dict[str, tuple[int, bytes]]) -> bytes:
        wide = self.bits == 64
        file = bytearray(self.pages * PAGE)
        for start, content in sections.values():
            file[start : start + len(content)] = content
        names = b"\0" + b"".join(name.encode() + b"\0" for name in [*sections, ".shstrtab"])
        headers_at = self.pages * PAGE - (len(sections) + 2) * (64 if wide else 40)
        names_at = headers_at - 256
        file[names_at : names_at + len(names)] = names
        numbers = {name: number for number, name in enumerate(sections, 1)}
        links = {".dynsym": ".dynstr", ".gnu.version": ".dynsym", ".gnu.version_d": ".dynstr"}
        headers = bytes(64 if wide else 40)
        for name, (start, content) in [*sections.items(), (".shstrtab", (names_at, names))]:
            kind = TYPES.get(name, 3 if name == ".shstrtab" else 1)
            entry = {".dynsym": 24 if wide else 16, ".gnu.version": 2}.get(name, 0)
            link = numbers[links[name]] if name in links else 0
            info = int(name in (".dynsym", ".gnu.version_d"))  # the first global symbol; one version
            place = names.index(name.encode() + b"\0")
            fields = (place, kind, 2, start, start, len(content), link, info, 1, entry)
            headers += struct.pack("<IIQQQQIIQQ" if wide else "<10I", *fields)
        file[headers_at:] = headers
        note_at, note = sections[".note"]
        file[:0x200] = self._header(headers_at, len(sections) + 2, note_at, len(note))
        return bytes(file)

    def _header(self, headers_at: int, count: int, note_at: int, note_size: int) -> bytes:
        segments = ((1, 5, 0, 0, 0, TEXT_END, TEXT_END), (4, 4, note_at, note_at, 0, note_size, note_size))
        if self.bits == 64:
            header = b"\x7fELF\2\1\1".ljust(16, b"\0")
            header += struct.pack(
                "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, headers_at, 0, 64, 56, 2, 64, count, count - 1
            )
            header += b"".join(struct.pack("<IIQQQQQQ", *segment, 8) for segment in segments)
        else:
            header = b"\x7fELF\1\1\1".ljust(16, b"\0")
            header += struct.pack(
                "<HHIIIIIHHHHHH", 3, 3, 1, 0, 52, headers_at, 0, 52, 32, 2, 40, count, count - 1
            )
            for kind, flags, offset, address, _, size, memory in segments:
                header += struct.pack("<8I", kind, offset, address, 0, size, memory, flags, 8)
        return header.ljust(0x200, b"\0")


def _note(name: bytes, kind: int, description: bytes) -> bytes:
    header = struct.pack("<III", len(name) + 1, len(description), kind)
    return header + _padded(name + b"\0") + _padded(description)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)


def reads_page(at: int, page: int) -> bytes:
    """Return ``mov PAGE(%rip),%eax`` at address ``at``, for a page before the image (negative)."""
    return b"\x8b\x05" + struct.pack("<i", page * PAGE - (at + 6))


def getrandom_code(size: int, *, prot: int = 3, flags: int = 0x28) -> bytes:
    """Return the instructions of ``__vdso_getrandom()`` that name the size of its state."""
    compare = b"\x49\x81\xf8" + struct.pack("<I", size)
    load = b"\x48\xb8" + struct.pack("<II", size, prot)
    return compare + load + b"\xc7\x41\x08" + struct.pack("<I", flags)
