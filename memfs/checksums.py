# SPDX-License-Identifier: MIT
"""Checksums of everything in a directory: what is on a range is believed only after they were compared.

XXH3 with 128 bits: not against an attacker (who could write the checksums, too), but against a kernel, a driver or
firmware that wrote where it should not. xxhash releases the interpreter's lock, so files go in parallel.
"""

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash


@dataclass(frozen=True, slots=True)
class Sum:
    """A file's size in bytes and its digest in hexadecimal."""

    size_bytes: int
    digest: str


def of_bytes(data: bytes) -> str:
    """Return the digest of ``data``."""
    return str(xxhash.xxh3_128_hexdigest(data))


def of_file(path: Path) -> Sum:
    """Return the checksum of a file; mapped, so that on DAX nothing is copied."""
    with path.open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size == 0:
            return Sum(0, of_bytes(b""))
        with mmap.mmap(f.fileno(), size, prot=mmap.PROT_READ) as view:
            return Sum(size, str(xxhash.xxh3_128_hexdigest(view)))


def of_tree(directory: Path, threads: int) -> dict[str, Sum]:
    """Return the checksums of all regular files below ``directory`` by their relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        return {
            os.fspath(p.relative_to(directory)): s
            for p, s in zip(files, pool.map(of_file, files), strict=True)
        }


def damage(directory: Path, expected: dict[str, Sum], threads: int) -> list[str]:
    """Return what is wrong with ``directory``, a line a file; nothing if all is as it was."""
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        return [line for line in pool.map(lambda item: _compare(directory, *item), expected.items()) if line]


def _compare(directory: Path, name: str, expected: Sum) -> str:
    try:
        found = of_file(directory / name)
    except OSError as e:
        return f"{name}: {e.strerror}"
    if found.size_bytes != expected.size_bytes:
        return f"{name}: {found.size_bytes} bytes instead of {expected.size_bytes}"
    if found.digest != expected.digest:
        return f"{name}: checksum {found.digest} instead of {expected.digest}"
    return ""
