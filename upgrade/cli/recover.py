# SPDX-License-Identifier: MIT
"""What the unit runs when the run has ended: undo what a killed run could not (``ExecStopPost=``)."""

import argparse
import os

import psutil

from upgrade import paths
from upgrade.cli import outcome, say
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.undo import Undo


def main(_options: argparse.Namespace) -> int:
    """Undo; nothing is left to do after a run that ended by itself."""
    host = Host()
    paths.REQUEST.unlink(missing_ok=True)
    undo = Undo(host, paths.UNDO)
    problems = undo.unwind(only={"thaw_filesystem"})  # CRIU's rollback may have to write
    _wait_for_others(host)
    problems += undo.unwind()
    for problem in problems:
        say(problem)
    if not paths.OUTCOME.exists():
        hint = f"journalctl -u {paths.RUN_UNIT}"
        undone = "; ".join(problems) if problems else "everything was undone"
        outcome.write(UpgradeError(f"the run was killed; {undone}", hint=hint))
    return ExitStatus.FAILED if problems else ExitStatus.DONE


def _wait_for_others(host: Host) -> None:
    """Wait until whatever the run had started has ended: it would finish what is undone here.

    A CRIU rolls back as soon as the run's end of its socket closes.
    """
    own = host.read("/proc/self/cgroup")
    found = []
    for process in psutil.process_iter():
        if process.pid != os.getpid() and host.read_or(f"/proc/{process.pid}/cgroup", "") == own:
            found.append(process)
    # Without a limit: a CRIU that rolls back after us would freeze its cgroup again and nobody would thaw it.
    psutil.wait_procs(
        found, callback=lambda process: say(f"a process of the run (PID {process.pid}) has ended")
    )
