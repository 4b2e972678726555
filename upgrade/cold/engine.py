# SPDX-License-Identifier: MIT
"""What an engine has to be able to do whose containers are stopped and started."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Running:
    """A container that runs."""

    id: str
    name: str
    started_ns: int
    """When it was started, on the wall clock, nanoseconds since the epoch."""
    removed: bool = False
    """It is removed as soon as it stops."""


class ColdEngine(Protocol):
    """One kind of container."""

    name: str
    why: str
    """Why none of them can be preserved."""

    def running(self) -> list[Running]:
        """Return all that run, in the order in which they were started."""
        ...

    def stop(self, ids: Sequence[str]) -> None:
        """Stop containers as their engine does, with the time that each has to end.

        :raises UpgradeError: if one does not stop
        """
        ...

    def start(self, id: str) -> int:
        """Start a container, if it does not run; return when it was started, as :class:`Running` has it.

        :raises UpgradeError: if it does not start
        """
        ...
