# SPDX-License-Identifier: MIT
"""``seamless-upgrade history``: which kernels ran on this host, and how each came in."""

import argparse
import json
from datetime import UTC, datetime

from upgrade import paths
from upgrade.cli import answer
from upgrade.errors import ExitStatus
from upgrade.host import Host
from upgrade.kexec.cmdline import session_of
from upgrade.report import history
from upgrade.report.history import Event, Record


def main(options: argparse.Namespace) -> int:
    """Print the timeline, or add to it (called by the unit)."""
    host = Host()
    if options.record:
        _record(host, options.record)
        return ExitStatus.DONE
    spans = history.timeline(history.read(paths.HISTORY), _now(), _boot_id(host))
    answer(json.dumps(history.to_json(spans), indent=2) if options.json else history.render_text(spans))
    return ExitStatus.DONE


def _record(host: Host, what: str) -> None:
    session = session_of(host.command_line())
    start = Event.UPGRADE if session is not None else Event.BOOT
    record = Record(
        event=start if what == "boot" else Event.SHUTDOWN,
        at=_now(),
        boot_id=_boot_id(host),
        release=host.release(),
        session=session,
        livepatches=tuple(host.list("/sys/kernel/livepatch")),
    )
    if what == "boot":
        history.record_start(paths.HISTORY, record)
    else:
        history.append(paths.HISTORY, record)


def _boot_id(host: Host) -> str:
    return host.read("/proc/sys/kernel/random/boot_id")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
