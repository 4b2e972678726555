# SPDX-License-Identifier: MIT
"""A machine made of files: ``/proc`` and ``/sys`` below a directory, and cgroups that freeze."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from upgrade.host import Host

NAMESPACES = ("mnt", "net", "ipc", "uts", "pid", "user")
VDSO = (0x7FFF00000000, 0x7FFF00002000)
BOOT_ID = "7c9a0d14-6a6f-4a5e-9f0e-3a1f0b7d2c11"
RELEASE = "6.12.48+deb13-cloud-amd64"


@dataclass(frozen=True)
class LiveHost(Host):
    """Calls a function after every write, as a kernel would react to it."""

    react: Callable[[str, str], None] = lambda path, text: None

    def write(self, path: str, text: str) -> None:
        Host.write(self, path, text)
        os.truncate(self.path(path), len(text))  # an attribute holds what was written last
        self.react(path, text)


class Machine:
    """Builds the files; ``host`` looks at them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = LiveHost(root, self._react)
        self.stubborn: set[str] = set()
        """Cgroups that do not freeze."""
        self.writes: list[tuple[str, str]] = []
        self.after_thaw: Callable[[str], None] = lambda cgroup: None
        self.file("/proc/cmdline", "root=/dev/vda1 quiet")
        self.file("/proc/self/mountinfo", "22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw")
        self.file("/proc/sys/kernel/osrelease", RELEASE)
        self.file("/proc/sys/kernel/tainted", "512")
        self.file("/proc/sys/kernel/random/boot_id", BOOT_ID)
        self._namespaces("self", {})

    def file(self, path: str, text: str) -> Path:
        """Write a file as the kernel shows it, with a newline at its end."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n" if text else "")
        return file

    def cgroup(self, name: str, pids: Iterable[int] = ()) -> None:
        """Make a cgroup with some processes."""
        base = f"/sys/fs/cgroup{name}"
        self.file(f"{base}/cgroup.procs", "\n".join(map(str, pids)))
        self.file(f"{base}/cgroup.freeze", "0")
        self.file(f"{base}/cgroup.events", "populated 1\nfrozen 0")
        self.file(f"{base}/cgroup.kill", "")

    def process(
        self,
        pid: int,
        *,
        parent: int = 1,
        session: int | None = None,
        name: str = "task",
        state: str = "S",
        threads: Mapping[int, str] | None = None,
        status: str = "",
        namespaces: Mapping[str, int] | None = None,
    ) -> None:
        """Make a process; ``threads`` are the contents of their ``syscall`` files."""
        base = f"/proc/{pid}"
        own = pid if session is None else session
        self.file(f"{base}/comm", name)
        self.file(f"{base}/stat", f"{pid} ({name}) {state} {parent} {own} {own} 0 -1 4194560")
        self.file(f"{base}/status", status)
        self.file(f"{base}/exe", "")
        self.file(f"{base}/maps", vdso_line(*VDSO))
        for thread, syscall in (threads or {pid: "running"}).items():
            self.file(f"{base}/task/{thread}/syscall", syscall)
        self._namespaces(str(pid), namespaces or {})

    def written(self, path: str) -> list[str]:
        """Return what was written to a file, in order."""
        return [text for where, text in self.writes if where == path]

    def _namespaces(self, pid: str, other: Mapping[str, int]) -> None:
        directory = self.root / "proc" / pid / "ns"
        directory.mkdir(parents=True)
        for kind in NAMESPACES:
            os.symlink(f"{kind}:[{other.get(kind, 4026531800)}]", directory / kind)

    def _react(self, path: str, text: str) -> None:
        self.writes.append((path, text))
        cgroup = path.removeprefix("/sys/fs/cgroup").removesuffix("/cgroup.freeze")
        if path.endswith("/cgroup.freeze") and cgroup not in self.stubborn:
            self.file(path.replace("cgroup.freeze", "cgroup.events"), f"populated 1\nfrozen {text}")
            if text == "0":
                self.after_thaw(cgroup)


def vdso_line(start: int, end: int) -> str:
    """Return a line of ``/proc/PID/maps``."""
    return (
        "55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]\n"
        f"{start:x}-{end:x} r-xp 00000000 00:00 0                          [vdso]"
    )


def at(pointer: int) -> str:
    """Return the ``syscall`` file of a thread that was stopped in user space."""
    return f"-1 0x7ffc2a1b3c48 {pointer:#x}"
