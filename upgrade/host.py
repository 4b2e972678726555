# SPDX-License-Identifier: MIT
"""The one door for reading and writing ``/proc`` and ``/sys``.

The root path is injectable, so that fake trees test everything above it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Host:
    """The machine under ``root``."""

    root: Path = Path("/")

    def path(self, path: str) -> Path:
        """Return where an absolute ``path`` of the host really is."""
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        """Return a file's text without the newline at its end; errors are the kernel's own (OSError)."""
        return self.path(path).read_text(errors="replace").rstrip("\n")

    def read_or(self, path: str, default: str) -> str:
        """Return a file's text, or ``default`` where it cannot be read."""
        try:
            return self.read(path)
        except OSError:
            return default

    def write(self, path: str, text: str) -> None:
        """Write ``text`` with one ``write(2)``, as attributes of the kernel want it."""
        fd = os.open(self.path(path), os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        return self.path(path).exists()

    def list(self, path: str) -> list[str]:
        """Return the sorted names in a directory; none where it does not exist."""
        try:
            return sorted(os.listdir(self.path(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def pids(self) -> Iterator[int]:
        """Yield the process ids of ``/proc``."""
        return (int(name) for name in self.list("/proc") if name.isdigit())

    def memory(self) -> dict[str, int]:
        """Return ``/proc/meminfo`` in bytes, under the kernel's names."""
        lines = (line.split(":", 1) for line in self.read("/proc/meminfo").splitlines())
        return {name: int(value.split()[0]) * 1024 for name, value in lines if value.endswith(" kB")}

    def release(self) -> str:
        """Return the running kernel's release (``uname -r``)."""
        return self.read("/proc/sys/kernel/osrelease")

    def command_line(self) -> str:
        """Return the running kernel's command line."""
        return self.read("/proc/cmdline")
