# SPDX-License-Identifier: MIT
"""What systemd says of our units. The checks look at their cgroups instead, and so tell another run from their own."""

from upgrade import paths
from upgrade.process import run

BUSY = ("active", "activating", "deactivating")


def state(name: str) -> str:
    """Return the state of a unit, as ``systemctl is-active`` says it."""
    return run(["systemctl", "is-active", name], check=False).stdout.strip()


def is_busy() -> bool:
    """Tell whether an upgrade runs, up to its jump or to the end of its undo."""
    return state(paths.RUN_UNIT) in BUSY
