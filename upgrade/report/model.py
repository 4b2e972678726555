# SPDX-License-Identifier: MIT
"""What is reported of one upgrade, and its JSON form, which ``schema.json`` describes.

The report is the edge of the program: durations are seconds here, except in CRIU's own statistics, which keep
CRIU's names and microseconds. Imports stay light, because the new kernel writes the report in the downtime.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Self

SCHEMA_VERSION = 1

PHASES = (
    "freeze",
    "dump",
    "capture",
    "quiesce",
    "last look",
    "jump",
    "kernel boot to first userspace",
    "userspace to restore",
    "restore",
)
"""The phases of the downtime, in order."""

Stats = Mapping[str, int]
"""CRIU's statistics under CRIU's names; times are microseconds."""

Json = dict[str, Any]
_NONE: Stats = MappingProxyType({})


class Outcome(StrEnum):
    """What became of the upgrade."""

    UPGRADED = "upgraded"
    DEGRADED = "degraded"
    FAILED = "failed"


class ContainerOutcome(StrEnum):
    """What became of a container."""

    RESTORED = "restored"
    COLD_STARTED = "cold-started"
    """It could not be restored."""
    RESTARTED = "restarted"
    """It was stopped before the jump and started after it, as it had been asked for."""
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the downtime."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ContainerReport:
    """One container. ``downtime_seconds`` is null for a container that is not back."""

    name: str
    engine: str
    outcome: ContainerOutcome
    reason: str | None = None
    downtime_seconds: float | None = None
    in_place: bool = False
    """Its page frames stayed where they were; only ``pages_copied`` were copied."""
    memory_complete_seconds: float | None = None
    """Of a container whose memory came on demand: from its freeze until all of it had come."""
    pages_total: int = 0
    pages_copied: int = 0
    bytes_copied: int = 0
    tasks: int = 0
    threads: int = 0
    threads_in_vdso: int = 0
    vdso_action: str | None = None
    dump: Stats = field(default_factory=lambda: _NONE)
    restore: Stats = field(default_factory=lambda: _NONE)

    def to_json(self) -> Json:
        """Return the container's JSON object."""
        return _plain(self) | {"dump": dict(self.dump), "restore": dict(self.restore)}

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Build a container from its JSON object.

        :raises ValueError: for an unknown outcome
        :raises TypeError: for a missing or an unknown member
        """
        return cls(**data | {"outcome": ContainerOutcome(data.get("outcome", ""))})


@dataclass(frozen=True, slots=True)
class Report:
    """One upgrade. Times of day are ISO 8601 in UTC.

    ``downtime_seconds`` is from the first freeze until the last container was let go again,
    ``downtime_error_seconds`` how wrong that may be. ``vdso`` is passed through as ``kexec`` made it.
    """

    id: str
    outcome: Outcome
    host: str
    kernel_from: str
    kernel_to: str
    command_line_from: str
    command_line_to: str
    taint_before: int
    taint_after: int
    criu_version: str
    started_at: str
    finished_at: str
    downtime_seconds: float
    downtime_error_seconds: float
    reason: str | None = None
    livepatches_before: tuple[str, ...] = ()
    livepatches_after: tuple[str, ...] = ()
    restore_mode: str = "copy"
    phases: tuple[Phase, ...] = ()
    pages_total: int = 0
    pages_copied: int = 0
    bytes_copied: int = 0
    gathering: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What moving pages into the ranges before the freeze cost; empty if none were moved."""
    containers: tuple[ContainerReport, ...] = ()
    vdso: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> Json:
        """Return the report's JSON object."""
        return _plain(self) | {
            "schema_version": self.schema_version,
            "livepatches_before": list(self.livepatches_before),
            "livepatches_after": list(self.livepatches_after),
            "phases": [_plain(phase) for phase in self.phases],
            "containers": [container.to_json() for container in self.containers],
            "gathering": dict(self.gathering),
            "vdso": dict(self.vdso),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Build a report from its JSON object.

        :raises ValueError: for another schema version or an unknown outcome
        :raises TypeError: for a missing or an unknown member
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {data.get('schema_version')}, not {SCHEMA_VERSION}")
        return cls(
            **data
            | {
                "outcome": Outcome(data.get("outcome", "")),
                "phases": tuple(Phase(**phase) for phase in data.get("phases", ())),
                "containers": tuple(ContainerReport.from_json(c) for c in data.get("containers", ())),
                "livepatches_before": tuple(data.get("livepatches_before", ())),
                "livepatches_after": tuple(data.get("livepatches_after", ())),
                "warnings": tuple(data.get("warnings", ())),
            }
        )

    def degraded(self, errors: Sequence[str]) -> "Report":
        """Return the report of an upgrade in which more went wrong; the same one without errors."""
        if not errors:
            return self
        reason = "; ".join([*([self.reason] if self.reason else []), *errors])
        return replace(self, outcome=Outcome.DEGRADED, reason=reason)

    def not_restored(self) -> tuple[ContainerReport, ...]:
        """Return the containers that did not come back as they were."""
        as_asked = (ContainerOutcome.RESTORED, ContainerOutcome.RESTARTED)
        return tuple(c for c in self.containers if c.outcome not in as_asked)


def _plain(record: Phase | ContainerReport | Report) -> Json:
    """Return the fields of a dataclass as they are, enumerations as text."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {k: str(v) if isinstance(v, StrEnum) else v for k, v in values.items()}
