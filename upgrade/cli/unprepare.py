# SPDX-License-Identifier: MIT
"""``seamless-upgrade unprepare``: take back what ``prepare`` did."""

import argparse
import json

from upgrade import plan
from upgrade.cli import answer
from upgrade.cli.prepare import render, to_json
from upgrade.errors import ExitStatus
from upgrade.host import Host
from upgrade.prepare import preparation


def main(options: argparse.Namespace) -> int:
    """Take everything back, or with ``--dry-run`` say what would be."""
    plan.privileged()
    done = preparation.unprepare(Host(), dry_run=options.dry_run)
    if options.json:
        answer(json.dumps(to_json(done), indent=2))
    elif not done.changed:
        answer("Nothing to do: prepare has changed nothing on this host.")
    else:
        said = "This would be taken back" if done.dry_run else "Taken back"
        after = (
            "the ranges stay set aside until the next reboot" if done.reboot_needed else "no reboot is needed"
        )
        answer("\n".join([*render(done), f"{said}; {after}."]))
    return ExitStatus.DONE
