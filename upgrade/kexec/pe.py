# SPDX-License-Identifier: MIT
"""The PE headers that a kernel has for EFI: is it signed?

Offsets: Microsoft's "PE Format", sections "Optional Header" and "The Attribute Certificate Table". The kernel looks
at the same fields in ``crypto/asymmetric_keys/verify_pefile.c``.
"""

import os
import struct
from pathlib import Path

_HEADER_BYTES = 0x1000
_CERTIFICATES = 4  # the number of the data directory
# By the optional header's magic: where its data directories begin, after their number (4 bytes)
_DIRECTORIES_AT = {0x10B: 96, 0x20B: 112}


def certificate_bytes(path: Path) -> int:
    """Return the size of a kernel's signatures; 0 if it has none, or is no PE program, or is cut off."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
    try:
        offset, length = _certificates(head)
    except struct.error:
        return 0
    return length if offset and offset + length <= size else 0


def _certificates(head: bytes) -> tuple[int, int]:
    """Return offset and size of the certificate table; two zeros if there is none."""
    (pe,) = struct.unpack_from("<I", head, 0x3C)
    if not head.startswith(b"MZ") or head[pe : pe + 4] != b"PE\0\0":
        return 0, 0
    optional = pe + 24
    (magic,) = struct.unpack_from("<H", head, optional)
    if magic not in _DIRECTORIES_AT:
        return 0, 0
    directories = optional + _DIRECTORIES_AT[magic]
    (number,) = struct.unpack_from("<I", head, directories - 4)
    if number <= _CERTIFICATES:
        return 0, 0
    offset, length = struct.unpack_from("<II", head, directories + 8 * _CERTIFICATES)
    return offset, length
