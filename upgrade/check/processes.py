# SPDX-License-Identifier: MIT
"""The processes of the containers, as CRIU will see them. Each file of ``/proc`` is read once, when somebody asks.

A process may end while it is looked at: then it has nothing any more.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from upgrade.check import sockets
from upgrade.check.mounts import MountTable
from upgrade.check.sockets import Socket
from upgrade.engines import Container
from upgrade.host import Host

DELETED = " (deleted)"
SOCKET = "socket:["
GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
# What a name in /proc/PID/maps begins with if it is memory and no file of any mount
_MEMORY = ("/memfd:", "/SYSV", "/anon_hugepage", "/dev/zero" + DELETED)


@dataclass(frozen=True)
class File:
    """A file that a process holds: by a descriptor, as its program, its directory, or mapped."""

    what: str
    """For example ``descriptor 5``."""
    source: str
    """The link in ``/proc``."""
    path: Path
    """Where that is below the host's root."""
    link: str

    @cached_property
    def state(self) -> os.stat_result | None:
        """What fstat(2) says; None if it is gone."""
        try:
            return os.stat(self.path)
        except OSError:
            return None

    @property
    def kind(self) -> int:
        """Its type (``stat.S_IFMT``), 0 if not known."""
        return stat.S_IFMT(self.state.st_mode) if self.state else 0

    @property
    def is_named(self) -> bool:
        """Tell whether it lies, or lay, in a directory."""
        return self.link.startswith("/")

    @property
    def is_memory(self) -> bool:
        """Tell whether it is memory that only looks like a file."""
        return self.link.startswith(_MEMORY)

    @cached_property
    def mount(self) -> int | None:
        """The number of its mount; None if it is gone."""
        try:
            fd = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return _mount_of(Path(f"/proc/self/fdinfo/{fd}").read_text())
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Descriptor(File):
    """An open descriptor."""

    number: int
    information: Path
    """Its file in ``fdinfo``."""

    @cached_property
    def lines(self) -> Sequence[tuple[str, str]]:
        """The lines of ``fdinfo``: name and value."""
        try:
            text = self.information.read_text(errors="replace")
        except OSError:
            return ()
        return [
            (name, value.strip()) for name, _, value in (line.partition(":") for line in text.splitlines())
        ]

    @property
    def inode(self) -> int:
        """The number in the link of a socket or a pipe."""
        return int(self.link.partition("[")[2].rstrip("]"))

    def field(self, name: str) -> str | None:
        """Return one value of ``fdinfo``."""
        return dict(self.lines).get(name)

    @property
    def flags(self) -> int:
        """What open(2) was given."""
        return int(self.field("flags") or "0", 8)

    @cached_property
    def mount(self) -> int | None:
        """The number of its mount; None if it is gone."""
        found = self.field("mnt_id")
        return int(found) if found else None


@dataclass(frozen=True)
class MemoryMapping:
    """A line of ``/proc/PID/maps``."""

    span: str
    """As ``map_files`` names it."""
    shared: bool
    device: str
    inode: int
    name: str


@dataclass(frozen=True)
class Process:
    """A process of a container."""

    host: Host
    container: Container
    pid: int
    tables: dict[str, MountTable] = field(default_factory=dict, repr=False, compare=False)
    """By mount namespace, shared by all processes."""

    def __str__(self) -> str:
        return f"PID {self.pid} ({self.name})"

    @property
    def directory(self) -> str:
        """Its directory in ``/proc``."""
        return f"/proc/{self.pid}"

    @cached_property
    def name(self) -> str:
        """The command's name."""
        return self._read("comm").strip() or "?"

    @cached_property
    def status(self) -> Mapping[str, str]:
        """``/proc/PID/status``."""
        return status_of(self._read("status"))

    @cached_property
    def stat(self) -> Sequence[str]:
        """The fields of ``/proc/PID/stat`` behind the name, from the state on; none if it is gone."""
        return self._read("stat").rpartition(")")[2].split()

    @cached_property
    def threads(self) -> Sequence[int]:
        """The numbers of its threads."""
        return sorted(int(name) for name in self._list("task"))

    @cached_property
    def children(self) -> Sequence[int]:
        """The numbers of the processes that it has started."""
        return [
            int(word) for thread in self.threads for word in self._read(f"task/{thread}/children").split()
        ]

    @cached_property
    def namespaces(self) -> Mapping[str, str]:
        """By kind what its links in ``ns`` say: ``net`` -> ``net:[4026531840]``."""
        found = {}
        for kind in self._list("ns"):
            with suppress(*GONE):
                found[kind] = os.readlink(self.host.path(f"{self.directory}/ns/{kind}"))
        return found

    @cached_property
    def descriptors(self) -> Sequence[Descriptor]:
        """Its open descriptors."""
        return list(self._descriptors())

    @cached_property
    def sockets(self) -> Sequence[tuple[Descriptor, Socket]]:
        """Its sockets; each once, and none if this is not the machine that runs."""
        if self.host.root != Path("/"):
            return []
        first = {each.link: each for each in reversed(self.descriptors) if each.link.startswith(SOCKET)}
        looked = ((each, sockets.look(self.pid, each.number, each.inode)) for each in first.values())
        return [(each, found) for each, found in looked if found is not None]

    @cached_property
    def links(self) -> Sequence[File]:
        """Its program, its root and its working directory."""
        whats = {"exe": "the program", "cwd": "the working directory", "root": "the root directory"}
        return [found for name, what in whats.items() if (found := self._file(name, what)) is not None]

    @cached_property
    def mappings(self) -> Sequence[MemoryMapping]:
        """Its mappings."""
        return list(_parse_maps(self._read("maps")))

    @cached_property
    def mapped(self) -> Sequence[File]:
        """Each file that it has mapped, once."""
        first = {(m.device, m.inode, m.name): m for m in reversed(self.mappings) if m.name.startswith("/")}
        found = (self._file(f"map_files/{m.span}", f"mapping {m.span}") for m in first.values())
        return [each for each in found if each is not None]

    @cached_property
    def top(self) -> str:
        """A root directory in ``/proc`` that shows all of its mount namespace: its own may be a chroot."""
        own = self.namespaces.get("mnt")
        for pid in (1, self.container.root_pid):
            with suppress(OSError):
                if os.readlink(self.host.path(f"/proc/{pid}/ns/mnt")) == own:
                    return f"/proc/{pid}/root"
        return f"{self.directory}/root"

    @cached_property
    def mounts(self) -> MountTable:
        """The mounts of its namespace."""
        key = self.namespaces.get("mnt", f"{self.pid}")
        if key not in self.tables:
            text = self.host.read_or(f"{os.path.dirname(self.top)}/mountinfo", "")
            self.tables[key] = MountTable.parse(text)
        return self.tables[key]

    def again(self) -> "Process":
        """Return the same process, to be read afresh."""
        return Process(self.host, self.container, self.pid, self.tables)

    def _descriptors(self) -> Iterator[Descriptor]:
        for name in sorted(self._list("fd"), key=int):
            source = f"{self.directory}/fd/{name}"
            path = self.host.path(source)
            with suppress(*GONE):
                yield Descriptor(
                    what=f"descriptor {name}",
                    source=source,
                    path=path,
                    link=os.readlink(path),
                    number=int(name),
                    information=self.host.path(f"{self.directory}/fdinfo/{name}"),
                )

    def _file(self, name: str, what: str) -> File | None:
        source = f"{self.directory}/{name}"
        path = self.host.path(source)
        with suppress(OSError):
            return File(what, source, path, os.readlink(path))
        return None

    def _read(self, name: str) -> str:
        try:
            return self.host.read(f"{self.directory}/{name}")
        except GONE:
            return ""

    def _list(self, name: str) -> Sequence[str]:
        try:
            return self.host.list(f"{self.directory}/{name}")
        except GONE:
            return []


def status_of(text: str) -> Mapping[str, str]:
    """Return the fields of a ``status`` file."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def by_container(processes: Sequence[Process]) -> Iterator[tuple[Container, Sequence[Process]]]:
    """Yield each container with its processes."""
    found: dict[tuple[str, str], list[Process]] = {}
    for process in processes:
        found.setdefault((process.container.engine, process.container.name), []).append(process)
    for members in found.values():
        yield members[0].container, members


def _mount_of(text: str) -> int | None:
    for line in text.splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    return None


def _parse_maps(text: str) -> Iterator[MemoryMapping]:
    for line in text.splitlines():
        words = line.split(maxsplit=5)
        start, _, end = words[0].partition("-")
        span = f"{int(start, 16):x}-{int(end, 16):x}"
        name = words[5] if len(words) > 5 else ""
        yield MemoryMapping(span, words[1][3:4] == "s", words[3], int(words[4]), name)
