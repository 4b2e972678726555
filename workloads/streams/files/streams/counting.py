# SPDX-License-Identifier: MIT
"""A stream of bytes of which each piece says where it belongs: numbers of eight bytes, counted up."""

import struct

NUMBERS = 512
BLOCK_BYTES = 8 * NUMBERS
_BLOCK = struct.Struct(f">{NUMBERS}Q")


def block(key: int, number: int) -> bytes:
    """Return one block of the stream ``key``; the two directions of a connection have different keys."""
    first = (key << 48) + number * NUMBERS
    return _BLOCK.pack(*range(first, first + NUMBERS))


class Stream:
    """One direction: what comes next, and where it is."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.at = 0
        """Bytes so far."""

    def next(self) -> bytes:
        """Return what comes next, up to the end of a block; the caller adds to :attr:`at` what it has sent of it."""
        number, offset = divmod(self.at, BLOCK_BYTES)
        return block(self.key, number)[offset:]

    def check(self, data: bytes) -> str | None:
        """Take what was received; return what is wrong with it."""
        while data:
            expected = self.next()[: len(data)]
            if data[: len(expected)] != expected:
                off = next(n for n, byte in enumerate(expected) if data[n] != byte)
                return (
                    f"byte {self.at + off} is wrong: {data[off : off + 16].hex()} after {self.at} right ones"
                )
            data = data[len(expected) :]
            self.at += len(expected)
        return None
