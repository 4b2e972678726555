# SPDX-License-Identifier: MIT
"""``seamless-upgrade status``: what happens now, or happened last."""

import argparse
import json
import time

from upgrade import paths
from upgrade.cli import SCHEMA_VERSION, answer, outcome, say
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.kexec.cmdline import session_of
from upgrade.process import run
from upgrade.report import store
from upgrade.report.model import Outcome, Report

POLL_S = 0.5
WAIT_S = 1800
BUSY = ("active", "activating", "deactivating", "reloading")
STATUS_OF = {
    Outcome.UPGRADED: ExitStatus.DONE,
    Outcome.DEGRADED: ExitStatus.DEGRADED,
    Outcome.FAILED: ExitStatus.FAILED,
}


def main(options: argparse.Namespace) -> int:
    """Say what goes on; with ``--wait`` say it when it has ended, with the exit status of the upgrade."""
    host = Host()
    deadline = time.monotonic() + WAIT_S
    while (state := _state(host)) != "idle" and options.wait:
        if time.monotonic() > deadline:
            raise UpgradeError(f"still {state} after {WAIT_S} s", hint=f"journalctl -u {paths.RESTORE_UNIT}")
        time.sleep(POLL_S)
    report = _last(host)
    if options.json:
        last = report.to_json() if report is not None else None
        answer(json.dumps({"schema_version": SCHEMA_VERSION, "state": state, "last": last}, indent=2))
    else:
        answer(_render(state, host, report))
    return _ended_with(host, report) if options.wait else ExitStatus.DONE


def _ended_with(host: Host, report: Report | None) -> int:
    """Return the exit status of the upgrade that has ended last."""
    if (ended := outcome.read()) is not None:  # of this boot, so it was rolled back
        return int(ended["error"]["exit_status"])
    if report is not None:
        return STATUS_OF[report.outcome]
    return ExitStatus.DONE if session_of(host.command_line()) is None else ExitStatus.DEGRADED


def _state(host: Host) -> str:
    """Return ``upgrading`` (before the jump), ``restoring`` (after it) or ``idle``."""
    if _unit(paths.RUN_UNIT) in BUSY:
        return "upgrading"
    session = session_of(host.command_line())
    restored = session is None or (paths.REPORTS / f"{session}.json").exists()
    if not restored and _unit(paths.RESTORE_UNIT) in ("activating", "inactive"):
        return "restoring"
    return "idle"


def _unit(name: str) -> str:
    return run(["systemctl", "is-active", name], check=False).stdout.strip()


def _last(host: Host) -> Report | None:
    """Return the report of the upgrade that brought this kernel in, else the newest."""
    session = session_of(host.command_line())
    try:
        return store.load(paths.REPORTS, session)
    except UpgradeError as e:
        if session is not None:
            say(f"seamless-upgrade: {e}")
        return None


def _render(state: str, host: Host, report: Report | None) -> str:
    lines = [f"{state}; running {host.release()}"]
    if report is not None:
        lines.append(
            f"last upgrade: {report.id}, {report.kernel_from} -> {report.kernel_to}, {report.outcome}, "
            f"downtime {report.downtime_seconds:.3f} s"
        )
    return "\n".join(lines)
