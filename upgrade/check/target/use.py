# SPDX-License-Identifier: MIT
"""What the containers use of the kernel: what the next one has to have, too."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from upgrade import cgroup
from upgrade.budget import find_frames
from upgrade.check.situation import Situation, Unknown
from upgrade.engines import Container
from upgrade.errors import UpgradeError
from upgrade.kexec import filesystems

_ENDED = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Use:
    """Answers are the names of those that use it: containers, mostly. Nobody where containers are not known."""

    situation: Situation

    @cached_property
    def containers(self) -> Sequence[Container]:
        """The containers, as far as they are known."""
        try:
            return self.situation.containers
        except Unknown:
            return ()

    @cached_property
    def tasks(self) -> Sequence[tuple[Container, int]]:
        """Their processes."""
        return self.situation.tasks if self.containers else ()

    @cached_property
    def frames(self) -> bool:
        """Whether page frames stay in place."""
        try:
            return bool(find_frames(self.situation.host, self.situation.request)[0])
        except UpgradeError:
            return False

    def namespaces(self, kind: str) -> list[str]:
        """Return who has a namespace of its own (namespaces(7))."""
        return [c.name for c in self.containers if self._namespace(str(c.root_pid), kind) != self._own(kind)]

    def controllers(self, name: str) -> list[str]:
        """Return who has a controller (Documentation/admin-guide/cgroup-v2.rst, ``cgroup.controllers``)."""
        read, path = self.situation.host.read_or, cgroup.path
        return [
            c.name for c in self.containers if name in read(path(c.cgroup, "cgroup.controllers"), "").split()
        ]

    @cached_property
    def filesystems(self) -> dict[str, list[str]]:
        """By type: who has such a file system mounted (proc_pid_mountinfo(5))."""
        found: dict[str, list[str]] = {}
        for container in self.containers:
            for kind in self.mounted(container.root_pid):
                found.setdefault(kind, []).append(container.name)
        return found

    def mounted(self, pid: int | str) -> list[str]:
        """Return the types of file systems that a process sees."""
        text = self.situation.host.read_or(f"/proc/{pid}/mountinfo", "")
        return sorted({mount.kind for mount in filesystems.parse(text)})

    def with_filesystem(self, kind: str) -> list[str]:
        """Return who has a file system of a type."""
        return self.filesystems.get(kind, [])

    @cached_property
    def seccomp(self) -> list[str]:
        """Who is restricted by seccomp(2)."""
        return self._where(lambda pid: self._status(pid, "Seccomp") not in ("", "0"))

    @property
    def narrow(self) -> Sequence[str]:
        """Who runs programs of 32 bits."""
        return self.situation.narrow

    @cached_property
    def native_aio(self) -> list[str]:
        """Somebody on this host, if anybody does asynchronous input and output (io_setup(2))."""
        count = self.situation.host.read_or("/proc/sys/fs/aio-nr", "0")
        return [] if count == "0" else ["programs of this host"]

    @cached_property
    def system_v(self) -> list[str]:
        """Who may use System V IPC: it exists on the host, or in a namespace."""
        lines = [
            line
            for kind in ("shm", "sem", "msg")
            for line in self.situation.host.read_or(f"/proc/sysvipc/{kind}", "").splitlines()[1:]
        ]
        return ["programs of this host"] if lines else self.namespaces("ipc")

    @cached_property
    def labels(self) -> dict[str, list[str]]:
        """By label of a security module: who is confined by it."""
        found: dict[str, set[str]] = {}
        for container, pid in self.tasks:
            # the kernel answers EINVAL where no module has labels
            label = self.situation.host.read_or(f"/proc/{pid}/attr/current", "").strip("\0\n ")
            if label and not label.startswith("unconfined"):
                found.setdefault(label, set()).add(container.name)
        return {label: sorted(names) for label, names in sorted(found.items())}

    def _where(self, holds: Callable[[int], bool]) -> list[str]:
        return sorted({container.name for container, pid in self.tasks if holds(pid)})

    def _status(self, pid: int, key: str) -> str:
        for line in self.situation.host.read_or(f"/proc/{pid}/status", "").splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return value.strip()
        return ""

    def _own(self, kind: str) -> str:
        return self._namespace("self", kind)

    def _namespace(self, pid: str, kind: str) -> str:
        try:
            return os.readlink(self.situation.host.path(f"/proc/{pid}/ns/{kind}"))
        except _ENDED:
            return ""


def named(names: Iterable[str], most: int = 3) -> str:
    """Return some names as a text."""
    known = list(dict.fromkeys(names))
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more
