# SPDX-License-Identifier: MIT
"""What the user asked for: the options of ``run`` and ``check``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Request:
    """One upgrade, as the command line said it."""

    kernel: str | None = None
    """A file or an installed version; None for the newest installed one that is not running."""
    initrd: str | None = None
    append: str = ""
    containers: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    """Services of systemd."""
    all: bool = False
    cold: tuple[str, ...] = ()
    """Engines whose containers are stopped before the jump and started after it."""
    quiesce: bool = True
    gather: bool = True
    """Move pages into the ranges for frames before the freeze."""
    pages: str = "auto"
    """``in-place``, ``copy``, or ``auto``: in place where there is a range for it."""
    verify: str = "sample"
    """``frames``: digests of all pages in place are compared; ``sample``: of some."""
    restore: str = "auto"
    """``eager``, ``lazy``, or ``auto``: what measures best."""
    clocks: str | None = None
    """``pause`` or ``run``; None: what the configuration says."""
    skip: tuple[str, ...] = ()
    """Checks that are left out: ids, families or patterns."""

    def save(self, file: Path) -> None:
        """Hand the request over to the unit that carries it out."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> Self:
        """Take a request over."""
        data = json.loads(file.read_text())
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)
