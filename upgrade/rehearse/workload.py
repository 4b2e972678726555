# SPDX-License-Identifier: MIT
"""What is to survive: a directory with ``workload.toml``, ``files/``, ``start``, ``verify`` and perhaps ``probe``."""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from upgrade.errors import UsageError

DESCRIPTION = "workload.toml"
HOOKS = ("start", "verify")
PROBE = "probe"
FILES = "files"


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload.

    ``start`` runs in the guest before the upgrade and returns when everything is up, ``verify`` afterwards;
    ``probe`` runs outside all the time. ``memory_mib`` is what the workload takes when it runs.
    """

    directory: Path
    name: str
    packages: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    containers: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    memory_mib: int = 0

    @property
    def probe(self) -> Path | None:
        """The program that watches from outside, if there is one."""
        path = self.directory / PROBE
        return path if path.exists() else None

    def files(self) -> list[Path]:
        """Return the paths of the files that come to ``/opt/workload``, relative to it."""
        root = self.directory / FILES
        return sorted(p.relative_to(root) for p in root.rglob("*") if p.is_symlink() or not p.is_dir())


def load(directory: Path) -> Workload:
    """Read a workload.

    :raises UsageError: where a file is missing, or the description has a wrong or unknown key
    """
    path = directory / DESCRIPTION
    try:
        content = tomllib.loads(path.read_text())
    except OSError as e:
        raise UsageError(f"not a workload: {e.strerror}", subject=str(path)) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(str(e), subject=str(path)) from e
    workload = parse(content, directory, path)
    programs = [directory / hook for hook in HOOKS] + ([workload.probe] if workload.probe else [])
    for program in programs:
        if not os.access(program, os.X_OK) or not program.is_file():
            raise UsageError("missing, or not executable", subject=str(program))
    return workload


def load_all(directories: Iterable[Path]) -> list[Workload]:
    """Read the workloads of one machine and make sure that they get along.

    :raises UsageError: where two have the same name, or bring the same file or port
    """
    workloads = [load(directory) for directory in directories]
    if not workloads:
        raise UsageError("at least one workload is needed", subject="--workload")
    refuse_twins("name", {workload: [workload.name] for workload in workloads})
    refuse_twins("file", {workload: list(map(str, workload.files())) for workload in workloads})
    refuse_twins("port", {workload: list(map(str, workload.ports)) for workload in workloads})
    return workloads


def refuse_twins(what: str, claims: Mapping[Workload, Iterable[str]]) -> None:
    """Make sure that no two workloads claim the same thing."""
    owners: dict[str, Workload] = {}
    for workload, names in claims.items():
        for name in names:
            other = owners.setdefault(name, workload)
            if other is not workload:
                raise UsageError(
                    f"{other.directory} brings the same {what}: {name}", subject=str(workload.directory)
                )


def parse(content: Mapping[str, Any], directory: Path, path: Path) -> Workload:
    """Return the workload that the parsed description ``content`` of the file ``path`` means."""
    known = {f.name: f for f in fields(Workload) if f.name != "directory"}
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
            raise UsageError(f"unknown key {key}", subject=str(path), hint=hint)
    if not content.get("name"):
        raise UsageError("the key name is missing", subject=str(path))
    values = {key: typed(key, value, path) for key, value in content.items()}
    if not str(values["name"]).replace("-", "").replace("_", "").isalnum():
        raise UsageError("name may have letters, digits, - and _", subject=str(path))
    return Workload(directory=directory.absolute(), **values)


def typed(key: str, value: Any, path: Path) -> Any:
    """Return a value as :class:`Workload` wants it, or say what it should have been."""
    lists = {"packages": str, "ports": int, "containers": str, "cgroups": str}
    if key in lists:
        kind = lists[key]
        if isinstance(value, list) and all(type(item) is kind for item in value):
            return tuple(value)
        expected = "a list of numbers" if kind is int else "a list of strings"
    elif key == "memory_mib":
        if type(value) is int and value >= 0:
            return value
        expected = "a number of MiB"
    elif isinstance(value, str):
        return value
    else:
        expected = "a string"
    raise UsageError(f"{key} must be {expected}", subject=str(path))
