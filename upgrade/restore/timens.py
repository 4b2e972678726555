# SPDX-License-Identifier: MIT
"""Clocks of restored tasks (CLOCK_MONOTONIC, CLOCK_BOOTTIME) that have the downtime counted.

CRIU restores into a time namespace whose clocks go on from what they were at the dump (criu/timens.c). To count the
downtime it is added to that image. What CRIU wrote is kept beside it, for a restore that has to begin again.
"""

import os
import struct
import time
from pathlib import Path

from upgrade import pagemaps
from upgrade.criu import image_messages

# criu/include/magic.h: TIMENS_MAGIC
MAGIC = struct.pack("<II", pagemaps.IMG_COMMON_MAGIC, 0x43114433)
KEPT = ".dumped"
_SECOND_NS = 10**9


def undo(directory: Path) -> None:
    """Put back what CRIU wrote, if a restore before this one has changed it."""
    for kept in directory.glob(f"timens-*.img{KEPT}"):
        kept.rename(kept.with_name(kept.name.removesuffix(KEPT)))


def count(directory: Path, most_ns: int) -> int:
    """Let the clocks of a dump go on as if its tasks had never stood still; return the nanoseconds added.

    CRIU reads the clocks and writes the image at once, so the image's time says when that was. The wall clock has to
    be right.

    :param most_ns: what the wall clock says is believed up to this
    :raises UpgradeError: if an image cannot be understood
    :raises OSError: if none can be written; what CRIU wrote is there then
    """
    entry = image_messages("timens_pb2").timens_entry
    added = 0
    for path in directory.glob("timens-*.img"):
        found = [entry.FromString(message) for message in pagemaps.messages(path, MAGIC)]
        if not found:  # CRIU did not know the clocks
            continue
        away = max(0, min(time.time_ns() - path.stat().st_mtime_ns, most_ns))
        for each in found:
            for clock in (each.monotonic, each.boottime):
                whole = clock.tv_sec * _SECOND_NS + clock.tv_nsec + away
                clock.tv_sec, clock.tv_nsec = divmod(whole, _SECOND_NS)
        new = path.with_name(f".{path.name}.new")
        pagemaps.write_messages(new, MAGIC, found)
        os.rename(path, path.with_name(path.name + KEPT))
        os.rename(new, path)
        added = max(added, away)
    return added
