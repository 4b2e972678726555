# SPDX-License-Identifier: MIT
"""What a guest writes to its serial console."""

import re
from dataclasses import dataclass
from pathlib import Path

PANIC = re.compile(rb"Kernel panic - not syncing: [^\r\n]*|end Kernel panic")
LAST_LINES = 30


@dataclass(frozen=True, slots=True)
class Console:
    """The file that QEMU writes the console to."""

    path: Path

    @property
    def size(self) -> int:
        """How much was written so far, to look only at what comes after."""
        return self.path.stat().st_size if self.path.exists() else 0

    def text(self, start: int = 0) -> str:
        """Return what was written after ``start`` bytes."""
        return self._bytes(start).decode(errors="replace").replace("\r", "")

    def last_lines(self, count: int = LAST_LINES) -> str:
        """Return the end, for an error message."""
        return "\n".join(self.text().splitlines()[-count:])

    def panic(self, start: int = 0) -> str | None:
        """Return the kernel's last words if it panicked after ``start``."""
        found = PANIC.search(self._bytes(start))
        return found[0].decode(errors="replace") if found else None

    def _bytes(self, start: int) -> bytes:
        if not self.path.exists():
            return b""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read()
