# SPDX-License-Identifier: MIT
"""Programs that only write down how they were called."""

from pathlib import Path

REAL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Programs:
    """A directory of programs; it is all that ``upgrade.process.PATH`` holds in a test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._calls = directory / ".calls"

    def add(self, name: str, body: str = ":") -> None:
        """Make a program: it is recorded with its arguments and standard input, then ``body`` runs (sh).

        Several may run at once: each writes its record as a whole.
        """
        file = self.directory / name
        file.write_text(
            f"#!/bin/sh\nPATH={REAL}\ninput=$(cat; echo .)\n"
            f"record=$(printf '%s' {name}; for word in \"$@\"; do printf '\\037%s' \"$word\"; done;"
            f" printf '\\035%s\\036' \"${{input%.}}\")\nprintf '%s' \"$record\" >>{self._calls}\n{body}\n"
        )
        file.chmod(0o755)

    def real(self, name: str) -> None:
        """Let the real program be called, unrecorded."""
        found = next(Path(d) / name for d in REAL.split(":") if (Path(d) / name).exists())
        (self.directory / name).symlink_to(found)

    def calls(self, name: str | None = None) -> list[list[str]]:
        """Return the command lines in order, of one program or of all."""
        return [words for words, _ in self._recorded() if name in (None, words[0])]

    def inputs(self, name: str) -> list[str]:
        """Return what a program read from standard input at each call."""
        return [text for words, text in self._recorded() if words[0] == name]

    def _recorded(self) -> list[tuple[list[str], str]]:
        if not self._calls.exists():
            return []
        records = self._calls.read_text().split("\x1e")[:-1]
        return [(words.split("\x1f"), text) for words, _, text in (r.partition("\x1d") for r in records)]
