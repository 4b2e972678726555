# SPDX-License-Identifier: MIT
"""``seamless-upgrade cold``: start what an upgrade has stopped (``seamless-upgrade-cold.service``), and report it."""

import argparse
import time
from dataclasses import replace

from upgrade import paths
from upgrade.cli import say, unit
from upgrade.cold import record
from upgrade.errors import ExitStatus
from upgrade.host import Host
from upgrade.plan import privileged
from upgrade.report import store
from upgrade.report.model import Report

POLL_S = 0.2


def main(_options: argparse.Namespace) -> int:
    """Start the containers; they are started after whatever boot comes next, also if that is no upgrade."""
    privileged()
    found = record.Record.load(paths.COLD)
    if found is None:
        return ExitStatus.DONE
    started = list(record.start(Host(), found))
    lost = record.lost(started)
    for each in lost:
        say(each)

    def add(report: Report) -> Report:
        return replace(report, containers=(*report.containers, *started)).degraded(lost)

    if _is_reported(found.session):
        store.change(paths.REPORTS, found.session, add)
    paths.COLD.unlink()
    return ExitStatus.DEGRADED if lost else ExitStatus.DONE


def _is_reported(session: str) -> bool:
    """Tell whether there is a report; it is waited for while the containers are still restored."""
    file = paths.REPORTS / f"{session}.json"
    while not file.exists() and unit.state(paths.RESTORE_UNIT) == "activating":
        time.sleep(POLL_S)
    return file.exists()
