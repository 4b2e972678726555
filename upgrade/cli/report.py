# SPDX-License-Identifier: MIT
"""``seamless-upgrade report``."""

import argparse
import json
import os
import sys

from upgrade import paths
from upgrade.cli import answer
from upgrade.errors import ExitStatus
from upgrade.report import store, text


def main(options: argparse.Namespace) -> int:
    """Print a report."""
    report = store.load(paths.REPORTS, options.id)
    answer(json.dumps(report.to_json(), indent=2) if options.json else text.render(report, colour=_colour()))
    return ExitStatus.DONE


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
