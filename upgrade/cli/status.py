# SPDX-License-Identifier: MIT
"""``seamless-upgrade status``: what happens now, or happened last."""

import argparse
import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from upgrade import cgroup, paths, ranges
from upgrade.cli import SCHEMA_VERSION, answer, outcome, say, unit
from upgrade.engines import engine, engines
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.kexec.cmdline import session_of
from upgrade.report import store
from upgrade.report.model import Outcome, Report
from upgrade.restore import ondemand

if TYPE_CHECKING:
    from upgrade.dump.gathering import Residence

POLL_S = 0.5
WAIT_S = 1800
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
        data = {
            "schema_version": SCHEMA_VERSION,
            "state": state,
            "frames": [ranges.describe(host, span) for span in ranges.for_frames(host)],
            "residence": [each.to_json() for each in _residences(host, report)],
            "memory": _serving(host),
            "last": last,
        }
        answer(json.dumps(data, indent=2))
    else:
        answer("\n".join(_render(state, host, report) + _coming(host) + _memory(host, report)))
    return _ended_with(host, report) if options.wait else ExitStatus.DONE


def _ended_with(host: Host, report: Report | None) -> int:
    """Return the exit status of the upgrade that has ended last."""
    if (ended := outcome.read()) is not None:  # of this boot, so it was rolled back
        return int(ended["error"]["exit_status"])
    if report is not None:
        return STATUS_OF[report.outcome]
    return ExitStatus.DONE if session_of(host.command_line()) is None else ExitStatus.DEGRADED


def _state(host: Host) -> str:
    """Return ``upgrading`` (before the jump), ``restoring`` (after it, until all memory is back) or ``idle``."""
    if unit.is_busy():
        return "upgrading"
    session = session_of(host.command_line())
    restored = session is None or (paths.REPORTS / f"{session}.json").exists()
    if host.exists(os.fspath(paths.PAGES)) and unit.state(paths.RESTORE_UNIT) in ("activating", "active"):
        return "restoring"
    if not restored and unit.state(paths.RESTORE_UNIT) in ("activating", "inactive"):
        return "restoring"
    if host.exists(os.fspath(paths.COLD)) and unit.state(paths.COLD_UNIT) in ("activating", "inactive"):
        return "restoring"
    # the report is written, the ranges are being given back
    ending = session is not None and host.exists(os.fspath(paths.PLAN))
    if ending and cgroup.is_populated(host, f"/system.slice/{paths.RESTORE_UNIT}"):
        return "restoring"
    return "idle"


def _last(host: Host) -> Report | None:
    """Return the report of the upgrade that brought this kernel in, else the newest."""
    session = session_of(host.command_line())
    try:
        return store.load(paths.REPORTS, session)
    except UpgradeError as e:
        if session is not None:
            say(f"seamless-upgrade: {e}")
        return None


def _residences(host: Host, report: Report | None) -> "list[Residence]":
    """Return where the pages lie of all containers that we know: runc's, and the others of the last upgrade."""
    spans = ranges.online(host)
    if not spans or os.geteuid() != 0:
        return []
    from upgrade.dump import gathering  # numpy

    try:
        known = [container for each in engines(host) for container in each.available()]
        for reported in report.containers if report is not None else ():
            if reported.engine in ("cgroup", "unit"):
                with suppress(UpgradeError):
                    known.append(engine(host, reported.engine).find(reported.name))
        return gathering.residences(host, known, spans)
    except (OSError, UpgradeError) as e:  # ENOTTY: no PAGEMAP_SCAN before Linux 6.7
        say(f"seamless-upgrade: it is not known where memory lies: {e}")
        return []


def _serving(host: Host) -> list[dict[str, Any]]:
    """Return what the page server has told, while there is one: how much of whose memory has come."""
    return list(ondemand.progress().values()) if host.exists(os.fspath(paths.PAGES)) else []


def _coming(host: Host) -> list[str]:
    lines = []
    for each in _serving(host):
        text = f"{each['done_bytes'] >> 20} of {each['total_bytes'] >> 20} MiB of its memory are back"
        error = f"; {each['error']}" if each["error"] else ""
        lines.append(f"the page server serves {each['name']}: {text}{error}")
    return lines


def _memory(host: Host, report: Report | None) -> list[str]:
    lines = []
    for span in ranges.for_frames(host):
        found = ranges.describe(host, span)
        lines.append(f"{span}: {found['online_bytes'] >> 20} of {found['size_bytes'] >> 20} MiB online")
    return lines + [f"  {each}" for each in _residences(host, report)]


def _render(state: str, host: Host, report: Report | None) -> list[str]:
    lines = [f"{state}; running {host.release()}"]
    if report is not None:
        lines.append(
            f"last upgrade: {report.id}, {report.kernel_from} -> {report.kernel_to}, {report.outcome}, "
            f"downtime {report.downtime_seconds:.3f} s"
        )
    return lines
