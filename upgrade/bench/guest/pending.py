# SPDX-License-Identifier: MIT
"""What a baseline's way out tells its way back in, through a file on the root disk."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from upgrade.bench.guest.ballast import WORK

# One file for each unit, as a unit's condition looks for it.
PLACES = {name: WORK / f"pending-{name}" for name in ("images", "cold")}
DONE = WORK / "done.json"


@dataclass(slots=True)
class Pending:
    """The containers that are to come back, and the stamps so far (TSC)."""

    containers: int
    mib: int
    stamps: dict[str, int] = field(default_factory=dict)
    bytes_copied: int = 0

    def save(self, file: Path) -> None:
        """Write it so that it is there after any kind of restart."""
        temporary = file.with_name(f".{file.name}.new")
        with temporary.open("w") as stream:
            json.dump(asdict(self), stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(file)
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read it."""
        return cls(**json.loads(file.read_text()))
