# SPDX-License-Identifier: MIT
"""``seamless-upgrade abort``: stop a run before its jump."""

import argparse
import json

from upgrade import paths
from upgrade.cli import SCHEMA_VERSION, answer, unit
from upgrade.errors import ExitStatus
from upgrade.plan import privileged
from upgrade.process import run


def main(options: argparse.Namespace) -> int:
    """Stop the unit; it undoes everything before it ends."""
    privileged()
    running = unit.state(paths.RUN_UNIT) in ("active", "activating")  # else it undoes already
    if running:
        run(["systemctl", "stop", paths.RUN_UNIT], timeout=300)
    said = "aborted; the containers run on" if running else "no upgrade runs"
    answer(json.dumps({"schema_version": SCHEMA_VERSION, "changed": running}) if options.json else said)
    return ExitStatus.DONE
