# SPDX-License-Identifier: MIT
"""What the page server serves: containers, and the file that says how far it has come with them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upgrade.restore.lazytask import Task
from upgrade.userfaultfd import PAGE_BYTES


@dataclass
class Container:
    """One container: where its dump is, and how far its restore has come."""

    number: int
    name: str
    images: Path
    work: Path
    restored: bool = False
    """CRIU has finished."""
    restored_ns: int = 0
    answers: bool = False
    """The container runs: the rest of its memory may be brought now."""
    error: str | None = None
    tasks: dict[str, Task] = field(default_factory=dict)
    total_pages: int = 0
    done_pages: int = 0
    faults: int = 0
    finished_ns: int | None = None

    @property
    def complete(self) -> bool:
        """Tell whether nothing is left to do."""
        return self.restored and not self.tasks

    def to_json(self) -> dict[str, Any]:
        """Return what the progress file says."""
        return {
            "name": self.name,
            "total_bytes": self.total_pages * PAGE_BYTES,
            "done_bytes": self.done_pages * PAGE_BYTES,
            "faults": self.faults + sum(task.faults for task in self.tasks.values()),
            "finished_at": self.finished_ns,
            "error": self.error,
        }


class Progress:
    """The file; moments in it are in nanoseconds of CLOCK_MONOTONIC."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.written = ""

    def recall(self, containers: Sequence[Container]) -> None:
        """Take over from an earlier server what only a living one counts."""
        try:
            told = json.loads(self.file.read_text())["containers"]
        except (OSError, ValueError, KeyError):
            return
        for container, before in zip(containers, told, strict=False):
            container.faults = before["faults"]
            container.error = before["error"]
            if before["finished_at"] is not None:
                container.finished_ns = before["finished_at"]
                container.total_pages = container.done_pages = before["total_bytes"] // PAGE_BYTES

    def tell(self, containers: Sequence[dict[str, Any]]) -> None:
        """Write the file, if there is anything new; whoever reads it finds it whole."""
        text = json.dumps({"containers": containers})
        if text == self.written:
            return
        fresh = self.file.with_name(self.file.name + ".new")
        fresh.write_text(text + "\n")
        fresh.replace(self.file)
        self.written = text
