# SPDX-License-Identifier: MIT
"""What the unit runs when the run has ended: undo what a killed run could not (``ExecStopPost=``)."""

import argparse
import json
import time

import psutil

from upgrade import paths
from upgrade.cli import say
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.undo import Undo

CRIU_S = 60


def main(_options: argparse.Namespace) -> int:
    """Undo; nothing is left to do after a run that ended by itself."""
    host = Host()
    if not paths.UNDO.exists():
        return ExitStatus.DONE
    _wait_for_criu(host)
    problems = Undo(host, paths.UNDO).unwind()
    for problem in problems:
        say(problem)
    if not paths.OUTCOME.exists():
        error = UpgradeError(
            "the run was killed; everything was undone", hint=f"journalctl -u {paths.RUN_UNIT}"
        )
        paths.OUTCOME.write_text(json.dumps({"outcome": "rolled-back", "error": error.to_json()}))
    paths.REQUEST.unlink(missing_ok=True)
    return ExitStatus.FAILED if problems else ExitStatus.DONE


def _wait_for_criu(host: Host) -> None:
    """Wait until every CRIU of the run has rolled back: it does so when the run's end of its socket closes."""
    own = host.read("/proc/self/cgroup")
    found = []
    for process in psutil.process_iter():
        if host.read_or(f"/proc/{process.pid}/cgroup", "") == own and _is_criu(process):
            found.append(process)
    deadline = time.monotonic() + CRIU_S
    for process in found:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except psutil.TimeoutExpired:
            say(f"CRIU (PID {process.pid}) does not end")


def _is_criu(process: psutil.Process) -> bool:
    try:
        return process.name() == "criu"
    except psutil.NoSuchProcess:
        return False
