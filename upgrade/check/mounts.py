# SPDX-License-Identifier: MIT
"""The mounts of a mount namespace (proc_pid_mountinfo(5))."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from upgrade.kexec import filesystems


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of ``mountinfo``."""

    number: int
    parent: int
    device: str
    root: str
    """What of its file system is mounted: ``/`` is all of it."""
    point: str
    options: frozenset[str]
    kind: str
    """The type of its file system."""

    @property
    def whole(self) -> bool:
        """Tell whether it shows its file system from the top."""
        return self.root == "/"


@dataclass(frozen=True, eq=False)
class MountTable:
    """All of a namespace."""

    mounts: Mapping[int, Mount]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what a ``mountinfo`` file says."""
        return cls({mount.number: mount for mount in map(_mount, text.splitlines())})

    def __iter__(self) -> Iterator[Mount]:
        return iter(self.mounts.values())

    @cached_property
    def top(self) -> Mount | None:
        """The mount that is the root of the namespace."""
        return next((m for m in self if m.parent not in self.mounts), None)

    def children(self, mount: Mount) -> list[Mount]:
        """Return what is mounted on a mount."""
        return self._children.get(mount.number, [])

    def hidden(self, mount: Mount) -> bool:
        """Tell whether another mount lies over it (criu/mount.c, ``mnt_is_overmounted``)."""
        at = mount
        while at.parent in self.mounts and at.parent != at.number:
            beside = self.children(self.mounts[at.parent])
            if any(other is not at and below(at.point, other.point) for other in beside):
                return True
            at = self.mounts[at.parent]
        return any(child.point == mount.point for child in self.children(mount))

    @cached_property
    def _children(self) -> Mapping[int, list[Mount]]:
        found: dict[int, list[Mount]] = {}
        for mount in self:
            if mount.parent != mount.number:
                found.setdefault(mount.parent, []).append(mount)
        return found


def below(path: str, directory: str) -> bool:
    """Tell whether a path is a directory or lies below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _mount(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    number, parent, device, root, point, options = left.split(" ")[:6]
    return Mount(
        int(number),
        int(parent),
        device,
        filesystems.unescape(root),
        filesystems.unescape(point),
        frozenset(options.split(",")),
        right.split()[0],
    )
