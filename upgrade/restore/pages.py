# SPDX-License-Identifier: MIT
"""How many pages a dump held, and how many of them were copied."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from upgrade import pagemaps
from upgrade.pagemaps import PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of a container: all, and those whose contents were copied."""

    total: int
    copied: int

    @property
    def copied_bytes(self) -> int:
        """Return the size of what was copied."""
        return self.copied * PAGE_BYTES


def count(directory: Path, in_place: Collection[str] = (), stragglers: int = 0) -> Pages:
    """Count the pages of a dump; those in files of the frame map are not copied, except for its stragglers."""
    found = pagemaps.read_all(directory)
    copied = sum(p.pages for p in found if p.file not in in_place)
    return Pages(sum(p.pages for p in found), copied + stragglers)
