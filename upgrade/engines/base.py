# SPDX-License-Identifier: MIT
"""What an engine has to be able to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Json = Any
"""Whatever ``json`` can write."""

GHOST_LIMIT_BYTES = 64 << 20
"""Files that are open and have no name any more are dumped up to this size."""

RESTORED = "restored"
"""A file in the work directory of a restore that came to its end, if CRIU's statistics are not there."""


@dataclass(frozen=True, slots=True)
class Container:
    """Something to be preserved: a tree of tasks that is dumped and restored as one.

    ``data`` is the engine's own; it travels in the session record.
    """

    name: str
    engine: str
    cgroup: str
    root_pid: int
    host_pids: bool
    """The tasks live in the host's PID namespace and need their numbers back."""
    host_network: bool
    data: Mapping[str, Json] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    """Its own addresses where the host's network passes packets on to it."""
    published: tuple[int, ...] = ()
    """Ports of the host that lead to it."""

    @property
    def service(self) -> tuple[str, Mapping[str, Json]] | None:
        """Return the service of systemd whose start restores it, if there is one, and what its drop-in says."""
        if self.engine == "unit":
            return self.name, self.data
        found = self.data.get("service")
        return (found["name"], found) if found else None


@dataclass(frozen=True, slots=True)
class Images:
    """Where a container's images are, and where CRIU's restore may write its log."""

    directory: Path
    work: Path
    timeout_s: float | None = None
    lazy: bool = False
    """At restore: a page server listens in ``work``, the memory comes on demand."""


class Engine(Protocol):
    """One kind of container."""

    name: str
    holds: bool
    """Its restore calls ``unlock`` before a task runs; otherwise they may run as soon as it has begun."""
    lazy: bool
    """Its restore can leave the memory to a page server."""

    def available(self) -> list[Container]:
        """Return every container of this engine that runs now."""
        ...

    def knows(self, name: str) -> bool:
        """Tell whether there is a container of this name that belongs to this engine."""
        ...

    def find(self, name: str) -> Container:
        """Return one by name; :class:`Refusal` says why it cannot be preserved."""
        ...

    def dump_options(self, container: Container, options: Any) -> None:
        """Fill CRIU's options (``criu_opts``) with what this engine needs at dump."""
        ...

    def prepare_images(self, container: Container, images: Images) -> None:
        """Write what belongs beside CRIU's images, before the dump."""
        ...

    def capture(self, container: Container, images: Images) -> None:
        """Write what can be written only while the tasks stand still. This is downtime."""
        ...

    def expect(self, containers: Sequence[Container]) -> None:
        """Prepare for the restore of these, of all that are still to be restored in this kernel."""
        ...

    def restore(self, container: Container, images: Images, unlock: "Unlock") -> int:
        """Bring a container back and return its root's process id."""
        ...

    def cold_start(self, container: Container) -> bool:
        """Start a container afresh; False if nobody knows how."""
        ...

    def clean_up(self, container: Container) -> None:
        """Remove what a failed restore may have left behind; its tasks are killed, but may take a moment to end."""
        ...

    def runs(self, container: Container) -> bool:
        """Tell whether a container that was restored is there."""
        ...

    def helpers(self, container: Container) -> tuple[str, ...]:
        """Return the cgroups in which the restore of a container works, if it is not in ours."""
        ...

    def is_late(self, container: Container) -> bool:
        """Tell whether its restore needs more of the system than there is before the boot goes on."""
        ...


class Unlock(Protocol):
    """Called once the sockets of a container exist again."""

    def __call__(self) -> None: ...
