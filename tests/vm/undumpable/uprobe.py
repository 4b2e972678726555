# SPDX-License-Identifier: MIT
"""Runs in the guest: the trampoline of a uprobe."""

import ctypes
import os
from pathlib import Path

from condition import hold, libc

CHECK = "containers.mappings"
TRACING = Path("/sys/kernel/tracing")


def make() -> object:
    address = ctypes.cast(libc.getppid, ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        start, end = (int(word, 16) for word in words[0].split("-"))
        if start <= address < end:
            (TRACING / "uprobe_events").write_text(
                f"p:undumpable {words[5]}:{address - start + int(words[2], 16):#x}\n"
            )
    (TRACING / "events/uprobes/undumpable/enable").write_text("1")
    found = libc.getppid()
    (TRACING / "events/uprobes/undumpable/enable").write_text("0")
    return found or os.getppid()


hold(make)
