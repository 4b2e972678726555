# SPDX-License-Identifier: MIT
"""The result of a benchmark, and its JSON form. Durations are seconds, as in the reports of upgrades."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from upgrade.report.model import Phase

SCHEMA_VERSION = 1
MIB = 1 << 20

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: one way to replace the kernel, once.

    ``downtime_seconds`` is from the first container's last tick to the last container's first one, null where
    the counter did not run on; ``container_seconds`` is each container's own gap. ``outside_seconds`` is the
    longest time without an answer that the client outside saw, in the host's time. ``extra_bytes`` is how far
    the old kernel's available memory fell, ``store_bytes`` what was written to the reserved range or to disk.
    ``floor_seconds`` is the time from kexec to the first userspace, where this cell was a bare kexec.
    """

    mode: str
    round: int
    error: str | None = None
    downtime_seconds: float | None = None
    container_seconds: tuple[float, ...] = ()
    outside_seconds: float | None = None
    floor_seconds: float | None = None
    phases: tuple[Phase, ...] = ()
    bytes_copied: int = 0
    store_bytes: int = 0
    extra_bytes: int | None = None
    notes: tuple[str, ...] = ()
    machine: int = 1
    wall_seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether everything came back, with the memory that it had."""
        return self.error is None

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Build a cell from its JSON object."""
        lists = {
            "phases": tuple(Phase(**phase) for phase in data["phases"]),
            "container_seconds": tuple(data["container_seconds"]),
            "notes": tuple(data["notes"]),
        }
        return cls(**data | lists)


@dataclass(slots=True)
class Row:
    """All modes at one size: ``containers`` times ``memory_mib``."""

    memory_mib: int
    containers: int
    cells: list[Cell] = field(default_factory=list)

    @property
    def total_mib(self) -> int:
        """The memory of all containers together."""
        return self.memory_mib * self.containers

    def of(self, mode: str) -> list[Cell]:
        """Return the good cells of one mode."""
        return [cell for cell in self.cells if cell.mode == mode and cell.good]

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Build a row from its JSON object."""
        return cls(**data | {"cells": [Cell.from_json(cell) for cell in data["cells"]]})


@dataclass(slots=True)
class Result:
    """A whole benchmark. ``clock`` is ``instructions`` (counted, repeatable) or ``host``."""

    kernel_from: str
    kernel_to: str
    modes: tuple[str, ...]
    rounds: int
    clock: str
    accelerator: str
    started_at: str
    finished_at: str | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def row(self, memory_mib: int, containers: int) -> Row:
        """Return the row of this size; a new one if there was none."""
        for row in self.rows:
            if (row.memory_mib, row.containers) == (memory_mib, containers):
                return row
        self.rows.append(Row(memory_mib, containers))
        return self.rows[-1]

    def cells(self) -> Iterator[tuple[Row, Cell]]:
        """Yield every cell with its row."""
        for row in self.rows:
            for cell in row.cells:
                yield row, cell

    @property
    def good(self) -> bool:
        """Whether something was measured and nothing failed."""
        cells = [cell for _, cell in self.cells()]
        return bool(cells) and all(cell.good for cell in cells)

    def to_json(self) -> Json:
        """Return the JSON object."""
        plain: Json = _plain(self)
        return plain

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Build a result from its JSON object.

        :raises ValueError: for another schema version
        :raises TypeError: for a missing or an unknown member
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {data.get('schema_version')}, not {SCHEMA_VERSION}")
        lists = {"modes": tuple(data["modes"]), "rows": [Row.from_json(row) for row in data["rows"]]}
        return cls(**data | lists)

    def save(self, file: Path) -> None:
        """Write the JSON so that the file is always whole: it is written after every cell."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.new")
        temporary.write_text(json.dumps(self.to_json(), indent=2) + "\n")
        temporary.rename(file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what :meth:`save` wrote."""
        return cls.from_json(json.loads(file.read_text()))


def _plain(value: Any) -> Any:
    """Return dataclasses as objects and sequences as lists, all the way down."""
    if isinstance(value, (Cell, Row, Result, Phase)):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
