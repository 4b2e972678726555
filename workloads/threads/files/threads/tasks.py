# SPDX-License-Identifier: MIT
"""Describe the tasks of the ring as JSON: what must be the same after the upgrade.

Numbers that the kernel gives out (inodes of pipes and sockets) are left away, as are mappings without a file.
"""

import json
import os
import sys
from pathlib import Path

LARGEFILE = 0o100000


def descriptors(pid: int) -> dict[str, str]:
    """Return what each descriptor of a process leads to, and its flags."""
    found = {}
    for link in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name)):
        try:
            target = os.readlink(link)
            info = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().splitlines()
        except FileNotFoundError:
            continue  # open for a moment only: the status file being replaced
        kind, _, number = target.partition(":[")
        flags = int(next(line for line in info if line.startswith("flags:")).split()[1], 8)
        what = kind if number.rstrip("]").isdigit() else target
        found[link.name] = f"{what}, flags {flags & ~LARGEFILE:o}"
    return found


def mappings(pid: int) -> list[str]:
    """Return the file mappings of a process: permissions, where they are, offset and file.

    Neighbours that differ in nothing are one: the kernel keeps them apart or not according to their history.
    """
    merged: list[list[object]] = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) < 6 or not parts[5].startswith("/"):
            continue
        start, end = (int(address, 16) for address in parts[0].split("-"))
        offset = int(parts[2], 16)
        last = merged[-1] if merged else None
        if last and last[0] == parts[1] and last[4] == parts[5] and last[2] == start and last[5] == offset:
            last[2], last[5] = end, offset + end - start
        else:
            merged.append([parts[1], start, end, offset, parts[5], offset + end - start])
    return [f"{m[0]} {m[1]:x}-{m[2]:x} {m[3]:x} {m[4]}" for m in merged]


def task(pid: int) -> dict[str, object]:
    """Describe one process."""
    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return {
        "pid": pid,
        "group": int(stat[2]),
        "session": int(stat[3]),
        "terminal": int(stat[4]),
        "threads": sorted(int(name) for name in os.listdir(f"/proc/{pid}/task")),
        "directory": os.readlink(f"/proc/{pid}/cwd"),
        "descriptors": descriptors(pid),
        "mappings": mappings(pid),
        "vmas": len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
    }


if __name__ == "__main__":
    print(json.dumps([task(int(argument)) for argument in sys.argv[1:]], indent=1))
