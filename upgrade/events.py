# SPDX-License-Identifier: MIT
"""What a run says while it works: one JSON line a step, in a file that any terminal can follow.

The run has a unit of its own and no terminal; the command that the user typed follows this file, and may die.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from upgrade.clock import Clock


@dataclass
class Events:
    """Writes steps, and keeps their stamps (TSC)."""

    file: Path
    clock: Clock
    stamps: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def stamp(self, name: str) -> int:
        """Note the moment ``name``."""
        self.stamps[name] = self.clock.tsc()
        return self.stamps[name]

    def say(self, text: str) -> None:
        """Tell the user something; costs one write to a tmpfs."""
        line = json.dumps({"text": text}) + "\n"
        fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)

    def warn(self, text: str) -> None:
        """Tell the user something that belongs into the report, too."""
        self.warnings.append(text)
        self.say(f"warning: {text}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say what is done, and say so again if it failed."""
        self.say(text)
        try:
            yield
        except BaseException:
            self.say(f"failed: {text}")
            raise
