# SPDX-License-Identifier: MIT
"""Files in memory (tmpfs) that tasks in the host's namespaces use: ``/run``, ``/dev/shm``, often ``/tmp``.

They end with the kernel, and CRIU opens files by their names. So they are copied beside the images while the tasks
stand still: those that a task has open, mapped or stands in, with the directories they lie in, and whole directories
that belong to the tasks. Of a unix socket with a name the directory is copied: CRIU binds the socket there again.
``upgrade/restore/volatile.py`` puts them back.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.kexec import filesystems
from upgrade.kexec.filesystems import Mount
from upgrade.restore.volatile import CONTENTS, INDEX, copy

MOST_BYTES = 256 << 20
"""Copying is downtime."""
KINDS = ("tmpfs", "ramfs")


def save(host: Host, pids: Iterable[int], owned: Iterable[str], target: Path) -> None:
    """Copy what tasks use, and all that lies below the directories ``owned``, into the directory ``target``.

    :raises UpgradeError: if it is too much
    """
    entries = find(host, pids, owned)
    too_large(sum(entry["bytes"] for entry in entries.values()))
    index = []
    for number, (path, entry) in enumerate(sorted(entries.items())):
        contents = f"{CONTENTS}{number}" if entry["kind"] == "file" else ""
        if contents:
            copy(host.path(path), target / contents)
        index.append({"path": path, "contents": contents, **entry})
    (target / INDEX).write_text(json.dumps(index))


def too_large(size_bytes: int) -> None:
    """Refuse what would take too long to copy."""
    if size_bytes > MOST_BYTES:
        raise UpgradeError(
            f"{size_bytes >> 20} MiB of files in memory (tmpfs) would have to be copied while it stands still",
            hint=f"put them on a disk; up to {MOST_BYTES >> 20} MiB are copied",
        )


def find(host: Host, pids: Iterable[int], owned: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what would be copied by its path: kind, owner, mode, time, size."""
    mounts = filesystems.mounts(host)
    roots = {m.device: m.where for m in reversed(mounts) if m.kind in KINDS}
    found: dict[str, dict[str, Any]] = {}
    for path in (*_used(host, pids, mounts), *_below(host, owned)):
        with suppress(OSError):
            _add(host, path, roots, found)
    return found


def _used(host: Host, pids: Iterable[int], mounts: Sequence[Mount]) -> Iterator[str]:
    """Yield the paths of what tasks have open, mapped, or stand in, if these are still its names.

    Only what is in memory is looked at closer: a file system whose server stands still, too, would not answer.
    """
    bound: dict[str, dict[str, str]] = {}
    for pid in pids:
        sockets = _bound(host, pid, bound)
        links = [f"/proc/{pid}/cwd"]
        for directory in ("fd", "map_files"):
            links += [f"/proc/{pid}/{directory}/{name}" for name in host.list(f"/proc/{pid}/{directory}")]
        for link in links:
            with suppress(OSError):
                path = os.readlink(host.path(link))
                if path in sockets:
                    path = sockets[path]
                    if is_in_memory(path, mounts) and stat.S_ISSOCK(host.path(path).lstat().st_mode):
                        yield os.path.dirname(path)
                elif is_in_memory(path, mounts):
                    held, there = host.path(link).stat(), host.path(path).lstat()
                    if (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino):
                        yield path


def _bound(host: Host, pid: int, known: dict[str, dict[str, str]]) -> Mapping[str, str]:
    """Return the names of the unix sockets in a task's network namespace by what ``/proc/PID/fd`` calls them."""
    try:
        namespace = os.readlink(host.path(f"/proc/{pid}/ns/net"))
    except OSError:  # it has ended
        return {}
    if namespace not in known:
        rows = (line.split(maxsplit=7) for line in host.read_or(f"/proc/{pid}/net/unix", "").splitlines())
        names = {f"socket:[{row[6]}]": row[7] for row in rows if len(row) == 8}
        known[namespace] = {link: name for link, name in names.items() if name.startswith("/")}
    return known[namespace]


def is_in_memory(path: str, mounts: Sequence[Mount]) -> bool:
    """Tell whether a path is on a file system in memory, going by the names of mounts: the last one of the longest."""
    over = [m for m in mounts if path == m.where or path.startswith(m.where.rstrip("/") + "/")]
    return bool(over) and max(reversed(over), key=lambda mount: len(mount.where)).kind in KINDS


def _below(host: Host, directories: Iterable[str]) -> Iterator[str]:
    for directory in directories:
        yield directory
        for at, names, files in os.walk(host.path(directory)):
            inside = os.path.relpath(at, host.path(directory))
            yield from (os.path.normpath(f"{directory}/{inside}/{name}") for name in (*names, *files))


def _add(host: Host, path: str, roots: Mapping[str, str], found: dict[str, dict[str, Any]]) -> None:
    """Note a file and the directories that lead to it, as far as they are in memory, too."""
    state = host.path(path).lstat()
    device = f"{os.major(state.st_dev)}:{os.minor(state.st_dev)}"
    if path in found or device not in roots or path == roots[device]:
        return
    kind = _kind(state.st_mode)
    if kind is None:
        return
    _add(host, os.path.dirname(path), roots, found)
    found[path] = {
        "kind": kind,
        "target": os.readlink(host.path(path)) if kind == "link" else "",
        "mode": stat.S_IMODE(state.st_mode),
        "uid": state.st_uid,
        "gid": state.st_gid,
        "time_ns": state.st_mtime_ns,
        "bytes": state.st_blocks * 512 if kind == "file" else 0,
    }


def _kind(mode: int) -> str | None:
    """Return what a file is; None for what CRIU makes itself, or nobody can: sockets, FIFOs, devices."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else None
