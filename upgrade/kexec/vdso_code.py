# SPDX-License-Identifier: MIT
"""What the machine code of a vDSO tells: patched places, data pages it reads, its random state.

The images are stripped, so that these facts are written nowhere else. Nothing here is guessed: each reader
returns nothing where the code does not look exactly like the kernel's.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

PAGE_BYTES = 4096

# struct alt_instr of arch/x86/include/asm/alternative.h: s32 instr_offset, s32 repl_offset, u32 ft_flags,
# u8 instrlen, u8 replacementlen since Linux commit 5d1dd961e743 ("x86/alternatives: Add alt_instr.flags")
# (in v6.3).
_ALTERNATIVE = struct.Struct("<iiIBB")
# The data area lies before the code: 4 pages until v6.14, 6 since. Far more would be a misread displacement.
_FURTHEST_PAGES = 16
_MINIMUM_REFERENCES = 3

# cmp $imm32,%r8: __vdso_getrandom() compares its fifth argument, opaque_len, with the size of its state.
_COMPARES_OPAQUE_LEN = re.compile(rb"\x49\x81\xf8(....)", re.DOTALL)
# movabs $imm64,%rN: size_of_opaque_state and mmap_prot, the first half of struct vgetrandom_opaque_params.
_LOADS_PARAMETERS = re.compile(rb"[\x48\x49][\xb8-\xbf](....)(....)", re.DOTALL)
# movl $imm32,8(%rN): its mmap_flags.
_STORES_FLAGS = re.compile(rb"\xc7[\x40-\x43\x45-\x47]\x08(....)", re.DOTALL)
_PARAMETERS_SPREAD_BYTES = 32


@dataclass(frozen=True, slots=True)
class RandomState:
    """What ``__vdso_getrandom()`` asks of its callers (``include/uapi/linux/random.h``)."""

    size_bytes: int
    mmap_prot: int | None
    mmap_flags: int | None


def alternatives(content: bytes, section: tuple[int, int], code: tuple[int, int]) -> tuple[range, ...]:
    """Return the places in ``code`` that the kernel patches at boot for the machine's processor.

    Two copies of one vDSO differ there: one read from the kernel file and one read from memory.

    :param section: start and end of ``.altinstructions`` in ``content``, in bytes
    :param code: start and end of ``.text``; an entry that points elsewhere discredits the whole table
    """
    table = content[section[0] : section[1]]
    if len(table) % _ALTERNATIVE.size:
        return ()
    places = []
    for number, (offset, _, _, length, _) in enumerate(_ALTERNATIVE.iter_unpack(table)):
        start = section[0] + number * _ALTERNATIVE.size + offset
        if not code[0] <= start <= start + length <= code[1]:
            return ()
        places.append(range(start, start + length))
    return tuple(places)


def first_data_page(content: bytes, code: tuple[int, int]) -> int | None:
    """Return where the data area of a 64-bit image begins, in bytes from the image (negative).

    It begins with the page that every clock reads (``vdso_u_time_data``, before v6.15 ``vvar_page``: see
    ``vdso-layout.lds.S``), so the lowest page that the code addresses is its first.
    """
    pages = Counter(_data_pages(content, code))
    if not pages or pages[min(pages)] < _MINIMUM_REFERENCES:
        return None
    return min(pages) * PAGE_BYTES


def _data_pages(content: bytes, code: tuple[int, int]) -> Iterator[int]:
    """Yield the number of the page, from the image, of each address before it that the code names."""
    for at in range(code[0], min(code[1], len(content)) - 5):
        # A ModRM byte with mod 0 and r/m 5 is followed by a displacement from the next instruction, which
        # begins behind it but for an immediate operand of up to four bytes: too few to leave the page,
        # except downwards from its first bytes, and those are loaded without one.
        if content[at] & 0xC7 == 0x05:
            (displacement,) = struct.unpack_from("<i", content, at + 1)
            page = (at + 5 + displacement) // PAGE_BYTES
            if -_FURTHEST_PAGES <= page < 0:
                yield page


def random_state(function: bytes) -> RandomState | None:
    """Return what the code of a 64-bit ``__vdso_getrandom()`` asks of its callers.

    The size is taken from the comparison with ``opaque_len``; protection and flags, where the code that hands
    them out is recognised, from there.
    """
    sizes = {_u32(found[1]) for found in _COMPARES_OPAQUE_LEN.finditer(function)}
    if len(sizes) != 1:
        return None
    size = sizes.pop()
    for found in _LOADS_PARAMETERS.finditer(function):
        if _u32(found[1]) == size:
            start = max(0, found.start() - _PARAMETERS_SPREAD_BYTES)
            flags = _STORES_FLAGS.search(function, start, found.end() + _PARAMETERS_SPREAD_BYTES)
            return RandomState(size, _u32(found[2]), _u32(flags[1]) if flags else None)
    return RandomState(size, None, None)


def _u32(raw: bytes) -> int:
    return int.from_bytes(raw, "little")
