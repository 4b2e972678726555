# SPDX-License-Identifier: MIT
"""``seamless-upgrade recover``: undo what a run has left, because it was killed or because an undo failed.

The unit calls it whenever a run has ended (``ExecStopPost=``); a user, once what was in the way is mended.
"""

import argparse
import json
import os
from collections.abc import Sequence

import psutil

from upgrade import paths
from upgrade.cli import SCHEMA_VERSION, answer, outcome, say
from upgrade.cli.run import refuse_second
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.plan import privileged
from upgrade.undo import Undo


def main(options: argparse.Namespace) -> int:
    """Undo; nothing is left to do after a run that has undone everything itself."""
    host = Host()
    by_unit = _is_of_unit(host.read_or("/proc/self/cgroup", ""))
    if not by_unit:
        privileged()
        refuse_second()
    paths.REQUEST.unlink(missing_ok=True)
    undo = Undo(host, paths.UNDO)
    left = undo.left()
    undo.unwind(only={"thaw_filesystem"})  # CRIU's rollback may have to write
    _wait_for_others(host)
    problems = undo.unwind()
    if by_unit and not paths.OUTCOME.exists():
        outcome.write(UpgradeError(f"the run was killed; {_undone(problems)}", hint=_hint(problems)))
    if problems:
        raise UpgradeError("; ".join(problems), subject=paths.RUN_UNIT, hint=_hint(problems))
    if options.json:
        answer(json.dumps({"schema_version": SCHEMA_VERSION, "changed": bool(left), "undone": left}))
    elif not by_unit:
        answer(f"undone: {', '.join(left)}" if left else "there is nothing to undo")
    return ExitStatus.DONE


def _undone(problems: Sequence[str]) -> str:
    return "; ".join(problems) if problems else "everything was undone"


def _hint(problems: Sequence[str]) -> str:
    read = f"journalctl -u {paths.RUN_UNIT}"
    return f"mend it, then: seamless-upgrade recover; {read}" if problems else read


def _is_of_unit(cgroups: str) -> bool:
    return cgroups.partition("\n")[0].endswith(f"/{paths.RUN_UNIT}")


def _wait_for_others(host: Host) -> None:
    """Wait until whatever the run had started has ended: it would finish what is undone here.

    A CRIU rolls back as soon as the run's end of its socket closes.
    """
    found = []
    for process in psutil.process_iter():
        if process.pid != os.getpid() and _is_of_unit(host.read_or(f"/proc/{process.pid}/cgroup", "")):
            found.append(process)
    # Without a limit: a CRIU that rolls back after us would freeze its cgroup again and nobody would thaw it.
    psutil.wait_procs(
        found, callback=lambda process: say(f"a process of the run (PID {process.pid}) has ended")
    )
