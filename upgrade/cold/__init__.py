# SPDX-License-Identifier: MIT
"""Engines whose containers no upgrade preserves: they are stopped before the jump and started after it (``--cold``)."""

from importlib import import_module

from upgrade.cold.engine import ColdEngine, Running
from upgrade.host import Host

__all__ = ("ENGINES", "ColdEngine", "Running", "engine")

# By name: the class in the module of that name
ENGINES = {"docker": "Docker"}


def engine(host: Host, name: str) -> ColdEngine:
    """Return the adapter called ``name``."""
    adapter: ColdEngine = getattr(import_module(f"upgrade.cold.{name}"), ENGINES[name])(host)
    return adapter
