# SPDX-License-Identifier: MIT
"""Where reports are kept: one JSON file each in a directory, named by the upgrade's id."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

from upgrade import files
from upgrade.errors import UpgradeError
from upgrade.report.model import Report

SUFFIX = ".json"


def save(directory: Path, report: Report) -> Path:
    """Write a report, so that it is there whole or not at all whatever happens; return its file.

    :raises UpgradeError: where it cannot be written
    """
    file = _file(directory, report.id)
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write(file, json.dumps(report.to_json(), indent=1) + "\n")
    except OSError as e:
        raise UpgradeError(
            f"the report cannot be written: {e.strerror}",
            subject=str(file),
            hint="make room or make the directory writable; the upgrade itself is not affected",
        ) from e
    return file


def change(directory: Path, id: str, how: Callable[[Report], Report]) -> Report:
    """Change a report that others may change at the same time; return what it is now.

    :raises UpgradeError: where it is missing or damaged, or cannot be written
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        report = how(load(directory, id))
        save(directory, report)
        return report
    finally:
        os.close(descriptor)


def load(directory: Path, id: str | None = None) -> Report:
    """Return the report of an upgrade, without ``id`` the latest one.

    :raises UpgradeError: where it is missing or damaged
    """
    file = _latest(directory) if id is None else _file(directory, id)
    try:
        data = json.loads(file.read_bytes())
        if not isinstance(data, dict):
            raise ValueError("no JSON object")
        return Report.from_json(data)
    except FileNotFoundError as e:
        raise UpgradeError(
            "there is no such report",
            subject=str(id or file),
            hint=f"the reports there are: {', '.join(ids(directory)) or 'none'}",
        ) from e
    except OSError as e:
        raise UpgradeError(
            f"the report cannot be read: {e.strerror}", subject=str(file), hint="run it as root"
        ) from e
    except (ValueError, TypeError, AttributeError) as e:
        raise UpgradeError(
            f"the report is damaged: {e}",
            subject=str(file),
            hint="move the file away; it was damaged after it was written or comes from another version",
        ) from e


def ids(directory: Path) -> list[str]:
    """Return the ids of all reports, the oldest first."""
    try:
        files = [f for f in directory.iterdir() if f.name.endswith(SUFFIX) and f.name[0] != "."]
        return [f.name.removesuffix(SUFFIX) for f in sorted(files, key=_age)]
    except FileNotFoundError:
        return []


def _age(file: Path) -> tuple[int, str]:
    """Return what reports are sorted by; a clock that stands still leaves it to the names."""
    try:
        return file.stat().st_mtime_ns, file.name
    except FileNotFoundError:
        return 0, file.name


def _latest(directory: Path) -> Path:
    known = ids(directory)
    if not known:
        raise UpgradeError(
            "there are no reports",
            subject=str(directory),
            hint="a report is written by each upgrade; this host has not had one",
        )
    return _file(directory, known[-1])


def _file(directory: Path, id: str) -> Path:
    if not id or id.startswith(".") or "/" in id or "\0" in id:
        raise UpgradeError("not the id of an upgrade", subject=id or "''", hint="take an id from the history")
    return directory / f"{id}{SUFFIX}"
