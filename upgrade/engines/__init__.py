# SPDX-License-Identifier: MIT
"""Engines: whose tasks they are. One adapter module each; more come later.

Light on imports: the new kernel restores through the same modules.
"""

from upgrade.engines.base import Container, Engine
from upgrade.engines.cgroup import CgroupEngine
from upgrade.engines.runc import RuncEngine
from upgrade.engines.unit import UnitEngine
from upgrade.errors import UpgradeError
from upgrade.host import Host

__all__ = ("Container", "Engine", "engine", "engines")


def engines(host: Host) -> tuple[Engine, ...]:
    """Return one adapter of every kind."""
    return (CgroupEngine(host), RuncEngine(host), UnitEngine(host))


def engine(host: Host, name: str) -> Engine:
    """Return the adapter called ``name``."""
    for each in engines(host):
        if each.name == name:
            return each
    raise UpgradeError("is not an engine of this version", subject=name)
