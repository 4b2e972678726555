# SPDX-License-Identifier: MIT
"""Runs in the new kernel beside the restore: kills the page server again and again while it serves.

Each time it is stopped first, so that what it has said is what it has done when it dies.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

UNIT = "seamless-upgrade-pages.service"
RUNTIME = Path("/run/seamless-upgrade")
KILLS = int(sys.argv[1])


def main_pid() -> int:
    """Return the process of the unit, 0 if there is none."""
    command = ["systemctl", "show", "--property=MainPID", "--value", UNIT]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def stored() -> int:
    """Return how many descriptors systemd keeps for it."""
    command = ["systemctl", "show", "--property=NFileDescriptorStore", "--value", UNIT]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def windows() -> list[int]:
    """Return how many windows of pages are done, and how many there are."""
    files = [file.read_bytes() for file in RUNTIME.glob("pages.d/*.done")]
    return [sum(data.count(1) for data in files), sum(map(len, files))]


kills: list[dict[str, int]] = []
dead = 0
while len(kills) < KILLS:
    # Some of the memory has come: CRIU has finished, the background works.
    done, total = windows()
    if not 0 < done < total or (kills and done <= kills[-1]["done"]):
        if kills and not (RUNTIME / "pages.d").exists():
            break
        time.sleep(0.001)
        continue
    pid = main_pid()
    if pid in (0, dead):
        continue
    os.kill(pid, signal.SIGSTOP)
    done, total = windows()
    if done < total:
        kills.append({"done": done, "total": total, "stored": stored()})
    os.kill(pid, signal.SIGKILL)
    dead = pid
Path("/run/kills.json").write_text(json.dumps(kills))
