# SPDX-License-Identifier: MIT
"""The units that a prepared host has: what ``scripts/install`` installs and enables, and the PID floor."""

import os
from collections.abc import Sequence
from pathlib import Path

from upgrade import files, paths
from upgrade.errors import Refusal
from upgrade.host import Host
from upgrade.prepare import pidfloor
from upgrade.process import run

SOURCES = Path(__file__).resolve().parents[1] / "units"
# systemd.unit(5)
DIRECTORIES = (
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
TARGET = "/usr/local/lib/systemd/system"
ENABLED = (
    paths.FRAMES_UNIT,
    paths.RESTORE_UNIT,
    paths.RESTORED_UNIT,
    paths.COLD_UNIT,
    "seamless-upgrade-history.service",
    pidfloor.UNIT,
)
COMMANDS = ("/usr/local/sbin/seamless-upgrade", "/usr/sbin/seamless-upgrade")


def refuse_without_command(host: Host) -> None:
    """Refuse if the command that the units call is not there, as when it is run from a checkout."""
    if not any(host.exists(command) for command in COMMANDS):
        raise Refusal(
            "is not installed: the units would call nothing",
            subject=COMMANDS[0],
            hint="scripts/install",
        )


def missing(host: Host) -> list[str]:
    """Return the units that are not installed."""
    names = sorted(source.name for source in SOURCES.glob("*.service"))
    return [name for name in names if not any(host.exists(f"{place}/{name}") for place in DIRECTORIES)]


def disabled(host: Host) -> list[str]:
    """Return the units of a prepared host that are not enabled."""
    wants = list(host.path("/etc/systemd/system").glob("*.wants"))
    return [name for name in ENABLED if not any(os.path.lexists(directory / name) for directory in wants)]


def install(host: Host, names: Sequence[str]) -> list[str]:
    """Install units; return the files that were written."""
    for name in names:
        files.write(host.path(f"{TARGET}/{name}"), (SOURCES / name).read_text())
    if names:
        _systemctl(host, "daemon-reload")
    return [f"{TARGET}/{name}" for name in names]


def enable(host: Host, names: Sequence[str]) -> None:
    """Have units started at every boot."""
    if names:
        _systemctl(host, "enable", "--quiet", *names)


def disable(host: Host, names: Sequence[str]) -> None:
    """Have units started no more."""
    if names:
        _systemctl(host, "disable", "--quiet", *names)


def remove(host: Host, written: Sequence[str]) -> None:
    """Remove the files that :func:`install` wrote."""
    for path in written:
        host.path(path).unlink(missing_ok=True)
    if written:
        _systemctl(host, "daemon-reload")


def _systemctl(host: Host, verb: str, *words: str) -> None:
    elsewhere = [] if host.root == Path("/") else [f"--root={host.root}"]
    if verb != "daemon-reload" or not elsewhere:
        run(["systemctl", *elsewhere, verb, *words])
