# SPDX-License-Identifier: MIT
"""What became of a run that did not jump, for the command that follows it."""

import json
from typing import Any

from upgrade import paths
from upgrade.errors import UpgradeError


def write(error: UpgradeError) -> None:
    """Write the outcome; it is there whole or not at all."""
    temporary = paths.OUTCOME.with_suffix(".new")
    temporary.write_text(json.dumps({"outcome": "rolled-back", "error": error.to_json()}))
    temporary.rename(paths.OUTCOME)


def read() -> dict[str, Any] | None:
    """Return the outcome; None while the run goes on, or if there was none."""
    try:
        found: dict[str, Any] = json.loads(paths.OUTCOME.read_text())
    except FileNotFoundError:
        return None
    return found
