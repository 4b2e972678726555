# SPDX-License-Identifier: MIT
"""Where things are. ``/run`` ends with the kernel, ``/var/lib`` stays, range M is what crosses over."""

from pathlib import Path

RUNTIME = Path("/run/seamless-upgrade")
STATE = Path("/var/lib/seamless-upgrade")

STORE = RUNTIME / "memory"
FRAMES = RUNTIME / "frames"
REQUEST = RUNTIME / "request.json"
UNDO = RUNTIME / "undo.jsonl"
EVENTS = RUNTIME / "events.jsonl"
OUTCOME = RUNTIME / "outcome.json"

PLAN = STATE / "plan.json"
REPORTS = STATE / "reports"
HISTORY = STATE / "history.jsonl"
UNITS = STATE / "units"
COLD = STATE / "cold.json"

LEDGER = RUNTIME / "restored.jsonl"
BACK = RUNTIME / "back"
PAGES = RUNTIME / "pages.json"

RUN_UNIT = "seamless-upgrade.service"
FRAMES_UNIT = "seamless-upgrade-frames.service"
RESTORE_UNIT = "seamless-upgrade-restore.service"
RESTORED_UNIT = "seamless-upgrade-restored.service"
PAGES_UNIT = "seamless-upgrade-pages.service"
COLD_UNIT = "seamless-upgrade-cold.service"

RESTORE_CGROUP = f"/system.slice/{RESTORE_UNIT}"


def make_runtime() -> None:
    """Make the directory below ``/run``; for root only, as the memory of programs is mounted in it."""
    RUNTIME.mkdir(mode=0o700, parents=True, exist_ok=True)
    RUNTIME.chmod(0o700)
