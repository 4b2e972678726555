# SPDX-License-Identifier: MIT
"""How many pages a dump held, read from CRIU's pagemaps."""

from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of a container: all, and those whose contents were copied."""

    total: int
    copied: int

    @property
    def copied_bytes(self) -> int:
        """Return the size of what was copied."""
        return self.copied * PAGE_BYTES


def count(directory: Path) -> Pages:
    """Count the pages of a dump; copied are those that lie in real ``pages-N.img`` files."""
    copied = sum(
        p.stat().st_size for p in directory.glob("pages-*.img") if p.is_file() and not p.is_symlink()
    )
    return Pages(_present(directory), copied // PAGE_BYTES)


def _present(directory: Path) -> int:
    from pycriu import images  # heavy

    present = 0
    for path in directory.glob("pagemap-*.img"):
        with path.open("rb") as f:
            entries = images.load(f, no_payload=True)["entries"]
        present += sum(_pages(entry) for entry in entries if "pages_id" not in entry)
    return present


def _pages(entry: dict[str, int]) -> int:
    # CRIU 4.2 moved the count to a field of 64 bits and writes 0 to the old one (images/pagemap.proto).
    return entry.get("nr_pages") or entry.get("compat_nr_pages", 0)
