# SPDX-License-Identifier: MIT
"""Putting files in memory back that restored tasks use (``upgrade/dump/volatile.py`` copied them)."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from upgrade.host import Host

INDEX = "volatile.json"
CONTENTS = "volatile-"


def restore(host: Host, images: Path) -> None:
    """Make what is not there; what this kernel's boot has made already is left as it is."""
    index = images / INDEX
    if not index.exists():
        return
    made = []
    for entry in json.loads(index.read_text()):  # sorted: a directory comes before what is in it
        path = host.path(entry["path"])
        if not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _make(path, entry, images)
            made.append((path, entry))
    for path, entry in reversed(made):  # what is made in a directory changes its time
        with suppress(NotImplementedError):
            os.utime(path, ns=(entry["time_ns"], entry["time_ns"]), follow_symlinks=False)


def _make(path: Path, entry: dict[str, Any], images: Path) -> None:
    if entry["kind"] == "link":
        path.symlink_to(entry["target"])
    elif entry["kind"] == "directory":
        path.mkdir()
    else:
        copy(images / entry["contents"], path)
    os.chown(path, entry["uid"], entry["gid"], follow_symlinks=False)
    if entry["kind"] != "link":
        path.chmod(entry["mode"])


def copy(source: Path, target: Path) -> None:
    """Copy a file without its holes. (shutil knows no holes, and is slow to import.)"""
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        _copy(old.fileno(), new.fileno())


def _copy(old: int, new: int) -> None:
    size = os.fstat(old).st_size
    os.ftruncate(new, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(old, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole
            return
        end = os.lseek(old, at, os.SEEK_HOLE)
        os.lseek(new, at, os.SEEK_SET)
        while at < end:
            at += os.sendfile(new, old, at, end - at)
