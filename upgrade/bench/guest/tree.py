# SPDX-License-Identifier: MIT
"""The containers of a benchmark: task trees in cgroups of their own."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from upgrade.bench.guest import ballast
from upgrade.process import run_detaching

LIBRARY = Path(__file__).resolve().parents[3]
CGROUPS = Path("/sys/fs/cgroup/workload")
READY_SECONDS = 1800.0
END_SECONDS = 120.0

# The shell moves itself first, so that every task is born inside.
_START = 'echo $$ > "$1/cgroup.procs"; cd /; shift; exec env -i "$@"'


def cgroup(number: int) -> Path:
    """Return the directory of a container's cgroup."""
    return CGROUPS / f"bench-{number}"


def start(count: int, mib: int) -> None:
    """Start the containers; returns before they are ready."""
    for number in range(count):
        cgroup(number).mkdir(parents=True, exist_ok=True)
        setting = ["PATH=/usr/bin:/bin", "LANG=C.UTF-8", f"PYTHONPATH={LIBRARY}", "PYTHONDONTWRITEBYTECODE=1"]
        program = ["python3", "-s", "-m", "upgrade.bench.guest.ballast", str(number), str(mib)]
        command = ["sh", "-ec", _START, "sh", str(cgroup(number)), *setting, "setsid", "--fork", *program]
        status = run_detaching(command, timeout=END_SECONDS)
        if status != 0:
            raise OSError(f"container {number} did not start: status {status}")


def pids() -> list[int]:
    """Return the processes of all containers."""
    return [int(pid) for file in CGROUPS.glob("bench-*/cgroup.procs") for pid in file.read_text().split()]


def stop(how: signal.Signals = signal.SIGTERM) -> None:
    """End all containers and wait until they are gone."""
    for pid in pids():
        with suppress(ProcessLookupError):
            os.kill(pid, how)
    deadline = time.monotonic() + END_SECONDS
    while pids():
        if time.monotonic() > deadline:
            raise OSError(f"do not end: {pids()}")
        time.sleep(0.002)


def wait(count: int) -> None:
    """Wait until all containers answer."""
    for number in range(count):
        ballast.ask(number, "gap", READY_SECONDS)
