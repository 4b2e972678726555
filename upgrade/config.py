# SPDX-License-Identifier: MIT
"""``/etc/seamless-upgrade/config.toml`` and ``config.d/*.toml`` beside it.

The same names below ``/usr/lib/seamless-upgrade`` come before it; later files win. An unknown key is an error: in a
tool that replaces kernels a typo must not be silent.
"""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from upgrade.errors import UsageError
from upgrade.host import Host

DIRECTORIES = ("/usr/lib/seamless-upgrade", "/etc/seamless-upgrade")
CLOCKS = ("pause", "run")


@dataclass(frozen=True, slots=True)
class Config:
    """What an administrator can set."""

    cold_start: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By cgroup: the command that starts it afresh if it cannot be restored."""
    freeze_timeout_seconds: float = 10.0
    dump_timeout_seconds: float = 120.0
    restore_timeout_seconds: float = 300.0
    """A container that is not back by then is started from cold."""
    filesystem_timeout_seconds: float = 20.0
    """How long a file system may take to be synced and frozen while the containers stand still."""
    writeback_bytes: int = 16 << 20
    """Dirty data that may be left to the last sync, while the containers stand still."""
    writeback_timeout_seconds: float = 30.0
    gather_step_bytes: int = 4 << 20
    """So much of the containers' memory is away at a time at the most while it is moved into the ranges for frames."""
    nudge: bool = True
    """Ask the peers of restored connections to retransmit at once."""
    clocks: str = "pause"
    """``pause``: the containers' CLOCK_MONOTONIC and CLOCK_BOOTTIME stand still while the containers do; ``run``: they
    count the downtime."""

    @classmethod
    def load(cls, host: Host) -> Self:
        """Read all files; :class:`UsageError` names file, key and the nearest known key."""
        merged: dict[str, Any] = {}
        for file in _files(host):
            merged.update({key: _typed(file, key, value) for key, value in _read(file).items()})
        return cls(**merged)


def _files(host: Host) -> list[Path]:
    found = []
    for directory in DIRECTORIES:
        base = host.path(directory)
        found += [base / "config.toml", *sorted((base / "config.d").glob("*.toml"))]
    return [file for file in found if file.is_file()]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"is not valid TOML: {e}", subject=str(file)) from e
    known = [f.name for f in fields(Config)]
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"unknown key {key!r}", subject=str(file), hint=hint)
    return content


def _typed(file: Path, key: str, value: Any) -> Any:
    subject = f"{file}: {key}"
    wanted = type(next(f.default for f in fields(Config) if f.name == key))
    if key == "cold_start":
        if isinstance(value, dict) and all(_is_command(command) for command in value.values()):
            return {cgroup: tuple(command) for cgroup, command in value.items()}
        raise UsageError(
            'must be a table like "/workload/redis" = ["redis-server", "--port", "6379"]', subject=subject
        )
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise UsageError(f"must be of type {wanted.__name__}, not {type(value).__name__}", subject=subject)
    if key == "clocks" and value not in CLOCKS:
        raise UsageError(f"must be one of {', '.join(CLOCKS)}, not {value!r}", subject=subject)
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise UsageError("must be a number that is not negative", subject=subject)
    return value


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)
