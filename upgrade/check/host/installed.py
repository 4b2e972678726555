# SPDX-License-Identifier: MIT
"""Programs, libraries and units that an upgrade needs."""

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from upgrade import criu as criu_client
from upgrade import paths, plan, ranges
from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation
from upgrade.errors import DependencyMissing, ExitStatus
from upgrade.host import Host

SYSTEMD = "/run/systemd/system"
# systemd.unit(5), "Unit File Load Path"; what comes first wins
UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)


def programs(situation: Situation) -> Iterator[Finding]:
    """Look for systemd, and for the programs that an upgrade calls."""
    host, request = situation.host, situation.request
    if not host.exists(SYSTEMD):
        yield failed(
            "systemd",
            "does not run",
            source=SYSTEMD,
            reason="an upgrade, and the restore after it, are units of systemd",
            remedy="reboot in the ordinary way",
        )
    in_place = request.pages != "copy" and ranges.for_frames(host)
    wanted = (*plan.PROGRAMS, *(plan.FRAMES_PROGRAMS if in_place else ()))
    missing = [error for error in map(_missing, wanted) if error is not None]
    for error in missing:
        found = failed(
            error.subject or "program",
            error.message,
            reason="an upgrade calls it",
            remedy=error.hint or "install its package",
        )
        yield replace(found, exit_status=ExitStatus.DEPENDENCY_MISSING)
    if not missing:
        yield passed("programs", f"{', '.join(wanted)} are installed")


def _missing(program: str) -> DependencyMissing | None:
    try:
        plan.installed(program)
    except DependencyMissing as e:
        return e
    return None


def criu(_situation: Situation) -> Iterator[Finding]:
    """Ask CRIU for its version, which needs its Python library; compare both."""
    try:
        with criu_client.Criu() as client:
            version = str(client.version())
        criu_client.pagemap_messages()
    except (ImportError, TypeError) as e:  # no protobuf, or one that is too new for pycriu's modules
        yield failed(
            "pycriu",
            f"cannot be imported: {e}",
            reason="CRIU is spoken to with it",
            remedy="apt-get install --reinstall python3-pycriu python3-protobuf",
        )
        return
    library, path = _pycriu_version()
    if library is None or library == version:
        yield passed("CRIU", f"{version}, pycriu {library or 'does not say its version'}", path)
    else:
        yield warned(
            "pycriu",
            f"{library}, but CRIU is {version}",
            source=path,
            reason="messages or images of one may be unknown to the other",
            remedy="install both from the same source: apt-get install criu python3-pycriu",
        )


def _pycriu_version() -> tuple[str | None, str]:
    """Return pycriu's version and the file that says so."""
    package = importlib.util.find_spec("pycriu")
    where = package.submodule_search_locations if package else None
    file = Path(where[0]) / "version.py" if where else Path("pycriu")
    try:
        found = re.search(r"""__version__ = ['"]([\d.]+)""", file.read_text())
    except OSError:
        found = None
    return (found[1] if found else None), os.fspath(file)


def units(situation: Situation) -> Iterator[Finding]:
    """Look for the unit that upgrades and the one that restores, which has to start by itself."""
    host = situation.host
    install = "scripts/install"
    good = True
    for unit in (paths.RUN_UNIT, paths.RESTORE_UNIT, paths.PAGES_UNIT):
        state = _unit_file(host, unit)
        if state is None or state == os.devnull:
            good = False
            yield failed(
                unit,
                "is masked" if state else "is not installed",
                source=UNIT_DIRECTORIES[0],
                reason="an upgrade cannot do without it",
                remedy=f"systemctl unmask {unit}" if state else install,
            )
    if good and not _is_enabled(host, paths.RESTORE_UNIT):
        yield failed(
            paths.RESTORE_UNIT,
            "is not enabled",
            source=UNIT_DIRECTORIES[0],
            reason="nobody would restore the containers in the new kernel",
            remedy=f"systemctl enable {paths.RESTORE_UNIT}",
        )
    elif good:
        yield passed("units", "are installed, and the restore is enabled", UNIT_DIRECTORIES[0])


def _unit_file(host: Host, unit: str) -> str | None:
    """Return the file of a unit, ``/dev/null`` if it is masked; None if there is none."""
    for directory in UNIT_DIRECTORIES:
        file = host.path(f"{directory}/{unit}")
        if file.is_symlink() and os.readlink(file) == os.devnull:
            return os.devnull
        if file.is_file():
            return f"{directory}/{unit}"
    return None


def _is_enabled(host: Host, unit: str) -> bool:
    """Tell whether something pulls a unit in by a link."""
    for directory in UNIT_DIRECTORIES:
        for name in host.list(directory):
            link = host.path(f"{directory}/{name}/{unit}")
            if name.endswith((".wants", ".requires")) and link.is_symlink():
                return True
    return False
