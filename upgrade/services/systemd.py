# SPDX-License-Identifier: MIT
"""systemd's manager, asked and told through ``systemctl``."""

from collections.abc import Iterable, Mapping

from upgrade.errors import UpgradeError
from upgrade.process import run

CALL_S = 30.0
STOP_S = 60.0
# Started now: neither what it is ordered after nor what it needs is waited for (systemctl(1), --job-mode=).
AT_ONCE = "--job-mode=ignore-dependencies"


def show(unit: str, properties: Iterable[str]) -> Mapping[str, str]:
    """Return properties of a unit, as ``systemctl show`` prints them; those that it does not know are missing."""
    text = run(["systemctl", "show", f"--property={','.join(properties)}", "--", unit], timeout=CALL_S).stdout
    return dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)


def reload() -> None:
    """Have systemd read all unit files again; what runs, runs on."""
    run(["systemctl", "daemon-reload"], timeout=CALL_S)


def start_at_once(unit: str, timeout_s: float) -> None:
    """Start a unit out of turn, and return when it is active.

    :raises UpgradeError: if it failed
    """
    run(["systemctl", "start", AT_ONCE, "--", unit], timeout=timeout_s)


def enqueue_start(unit: str) -> None:
    """Have a unit started when its turn comes; a boot that waits for us would wait for ever."""
    run(["systemctl", "start", "--no-block", "--", unit], timeout=CALL_S)


def stop_at_once(unit: str) -> None:
    """Stop a unit and forget that it failed."""
    run(["systemctl", "stop", AT_ONCE, "--", unit], check=False, timeout=STOP_S)
    run(["systemctl", "reset-failed", "--", unit], check=False, timeout=CALL_S)


def state(unit: str) -> str:
    """Return a unit's ``ActiveState``; empty if systemd does not answer."""
    try:
        return show(unit, ["ActiveState"]).get("ActiveState", "")
    except UpgradeError:
        return ""


def watchdogs(enabled: bool) -> None:
    """Have systemd heed the watchdogs of services, or not (systemctl(1), ``service-watchdogs``)."""
    run(["systemctl", "service-watchdogs", "yes" if enabled else "no"], timeout=CALL_S)
