# SPDX-License-Identifier: MIT
"""Runs in the guest: a function with a uprobe, in a library of its own: others that call it would be traced, too."""

import ctypes
import shutil
from pathlib import Path

from condition import directory, hold

CHECK = "containers.mappings"
TRACING = Path("/sys/kernel/tracing")


def mapped(name: str) -> list[list[str]]:
    """Return the words of each mapping of a file that is called so."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return [words for words in lines if words[-1].endswith(name)]


def make() -> object:
    ctypes.CDLL("libm.so.6")
    own = directory() / "own.so"
    shutil.copyfile(mapped("/libm.so.6")[0][-1], own)
    library = ctypes.CDLL(str(own))
    address = ctypes.cast(library.fabs, ctypes.c_void_p).value or 0
    for words in mapped("/own.so"):
        start, end = (int(word, 16) for word in words[0].split("-"))
        if start <= address < end:
            offset = address - start + int(words[2], 16)
            (TRACING / "uprobe_events").write_text(f"p:undumpable {own}:{offset:#x}\n")
    (TRACING / "events/uprobes/undumpable/enable").write_text("1")
    library.fabs(ctypes.c_double(1))
    (TRACING / "events/uprobes/undumpable/enable").write_text("0")
    return library


hold(make)
