# SPDX-License-Identifier: MIT
"""A small read-only disk with what a rehearsal brings into the guest, made anew for every run."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from upgrade.process import run
from upgrade.rehearse.guest import SEED_LABEL

REPOSITORY = Path(__file__).resolve().parents[2]

# What `scripts/install` may want to copy.
CODE = ("upgrade", "memfs", "scripts", "packaging", "pyproject.toml", "README.md", "LICENSE")
NOT_NEEDED = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".*_cache")
SPARE_MIB = 8


def build(trees: Mapping[str, Path], target: Path) -> None:
    """Make a disk with the given files and directories at the given places."""
    with tempfile.TemporaryDirectory(prefix="seed-") as work:
        content = Path(work, "content")
        for place, source in trees.items():
            copy(source, content / place.lstrip("/"))
        size = sum(max(file.stat().st_size, 4096) for file in content.rglob("*") if file.is_file())
        mib = int(size * 1.2) // (1 << 20) + SPARE_MIB
        run(
            [
                "mke2fs",
                "-q",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-L",
                SEED_LABEL,
                "-d",
                content,
                target,
                f"{mib}M",
            ]
        )


def copy(source: Path, target: Path) -> None:
    """Copy a file or a tree."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=NOT_NEEDED)
    else:
        shutil.copy2(source, target)


def code() -> dict[str, Path]:
    """Return the parts of this project that the guest needs, below ``/code``."""
    return {f"/code/{name}": REPOSITORY / name for name in CODE if (REPOSITORY / name).exists()}
