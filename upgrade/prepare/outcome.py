# SPDX-License-Identifier: MIT
"""What ``prepare`` and ``unprepare`` answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memfs.ranges import Range


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, or with ``dry_run`` would be."""

    changed: bool
    reboot_needed: bool
    dry_run: bool
    by_hand: bool = False
    """The ranges were there already, and not set by us."""
    boot_loader: str | None = None
    spans: tuple[Range, ...] = ()
    nodes: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    units: tuple[str, ...] = ()
    pid_floor: int | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        nodes: Sequence[int | None] = self.nodes or [None] * len(self.spans)
        return {
            "changed": self.changed,
            "reboot_needed": self.reboot_needed,
            "dry_run": self.dry_run,
            "by_hand": self.by_hand,
            "boot_loader": self.boot_loader,
            "arguments": " ".join(map(str, self.spans)),
            "ranges": [
                {
                    "purpose": "frames" if number else "store",
                    "start_bytes": span.start_bytes,
                    "size_bytes": span.size_bytes,
                    "node": node,
                    "argument": str(span),
                }
                for number, (span, node) in enumerate(zip(self.spans, nodes, strict=True))
            ],
            "files": list(self.files),
            "commands": [list(command) for command in self.commands],
            "units": list(self.units),
            "pid_floor": self.pid_floor,
            "warnings": list(self.warnings),
        }
