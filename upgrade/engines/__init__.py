# SPDX-License-Identifier: MIT
"""Engines: whose tasks they are. One adapter module each; more come later.

Light on imports: the new kernel restores through the same modules, and imports those that it needs.
"""

from importlib import import_module

from upgrade.engines.base import Container, Engine
from upgrade.errors import UpgradeError
from upgrade.host import Host

__all__ = ("Container", "Engine", "engine", "engines")

# By name: the class in the module of that name. Who is asked first for a container comes first.
ADAPTERS = {
    "cgroup": "CgroupEngine",
    "runc": "RuncEngine",
    "crun": "CrunEngine",
    "podman": "PodmanEngine",
    "unit": "UnitEngine",
}


def engines(host: Host) -> tuple[Engine, ...]:
    """Return one adapter of every kind."""
    return tuple(engine(host, name) for name in ADAPTERS)


def engine(host: Host, name: str) -> Engine:
    """Return the adapter called ``name``."""
    if name not in ADAPTERS:
        raise UpgradeError("is not an engine of this version", subject=name)
    adapter: Engine = getattr(import_module(f"upgrade.engines.{name}"), ADAPTERS[name])(host)
    return adapter
