# SPDX-License-Identifier: MIT
"""Things that take long to make, kept under a name derived from what they were made of.

An entry is never changed: what would change it changes its key. It appears under its name only when it is
complete, so a run that was killed leaves nothing half-made behind.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SEAMLESS_UPGRADE_CACHE"


def digest(*parts: str) -> str:
    """Return a short key for what an entry is made of."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Cache:
    """The directory ``root``."""

    root: Path

    @classmethod
    def default(cls) -> "Cache":
        """Return the user's cache: ``$SEAMLESS_UPGRADE_CACHE``, else the usual place for caches."""
        chosen = os.environ.get(VARIABLE)
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(Path(chosen) if chosen else base / "seamless-upgrade")

    def directory(self, name: str) -> Path:
        """Return a directory for files that do change, such as package lists."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Let one process at a time do something; the lock goes away with a process that dies."""
        path = self.directory("locks") / name
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def entry(self, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """Return the file or directory ``kind/key``; ``build`` makes it at the path it is given."""
        path = self.directory(kind) / key
        if path.exists():
            return path
        with self.lock(f"{kind}-{key}"):
            if not path.exists():
                unfinished = path.with_name(f".{key}.new")
                remove(unfinished)
                build(unfinished)
                unfinished.rename(path)
        return path


def remove(path: Path) -> None:
    """Remove a file or a tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
