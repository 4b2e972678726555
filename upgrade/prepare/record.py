# SPDX-License-Identifier: MIT
"""What ``prepare`` did to a host, so that ``unprepare`` takes back just that."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from memfs import ranges
from memfs.ranges import Range
from upgrade import files, paths
from upgrade.errors import UpgradeError
from upgrade.host import Host

FILE = str(paths.STATE / "prepared.json")
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """Written before anything is changed. Paths are absolute ones of the host."""

    loader: str = ""
    """Empty if the ranges were there already: they are not ours."""
    arguments: tuple[str, ...] = ()
    nodes: tuple[int, ...] = ()
    """Of each range."""
    asked: str | None = None
    """What ``--memory`` asked for; None for the default."""
    created: bool = False
    """The boot loader's file was not there before."""
    enabled: tuple[str, ...] = ()
    installed: tuple[str, ...] = ()

    @property
    def spans(self) -> tuple[Range, ...]:
        """Return the ranges that were set aside."""
        return tuple(ranges.parse_command_line(" ".join(self.arguments)))

    def save(self, host: Host) -> None:
        """Write it."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        files.write(host.path(FILE), json.dumps(data, indent=1) + "\n")

    @staticmethod
    def remove(host: Host) -> None:
        """Forget it."""
        host.path(FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, host: Host) -> Self | None:
        """Return what was written; None if the host was not prepared.

        :raises UpgradeError: if it cannot be understood
        """
        text = files.read(host.path(FILE))
        if text is None:
            return None
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError("written by another version")
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise UpgradeError(
                f"cannot be understood: {e}", subject=FILE, hint="unprepare by hand, then remove the file"
            ) from e
