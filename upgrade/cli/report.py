# SPDX-License-Identifier: MIT
"""``seamless-upgrade report``."""

import argparse
import json

from upgrade import paths
from upgrade.cli import answer, colour
from upgrade.errors import ExitStatus
from upgrade.report import store, text


def main(options: argparse.Namespace) -> int:
    """Print a report."""
    report = store.load(paths.REPORTS, options.id)
    answer(json.dumps(report.to_json(), indent=2) if options.json else text.render(report, colour=colour()))
    return ExitStatus.DONE
