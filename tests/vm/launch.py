# SPDX-License-Identifier: MIT
"""Runs in the guest: start programs, each in a cgroup of its own, as an ordinary service would run.

One interpreter forks into all of them: to start one after the other takes an emulated machine minutes.
"""

import ctypes  # noqa: F401 (the programs need these: imported once, for all)
import mmap  # noqa: F401
import os
import runpy
import signal  # noqa: F401
import socket  # noqa: F401
import struct  # noqa: F401
import sys
import threading  # noqa: F401
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup/workload")
STATE = Path("/run/conditions")
PATIENCE_S = 60


def start(program: Path, name: str) -> None:
    """Start one: its parent is the init, it leads a session, and nothing of ours is open in it."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    (CGROUPS / name).mkdir(parents=True, exist_ok=True)
    (CGROUPS / name / "cgroup.procs").write_text("0")
    os.setsid()
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open(f"/run/{name}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for source, target in ((null, 0), (null, 1), (errors, 2)):
        os.dup2(source, target)
    os.closerange(3, 1024)
    sys.argv = [str(program)]
    sys.path.insert(0, str(program.parents[1]))
    try:
        runpy.run_path(str(program), run_name="__main__")
    except BaseException as e:
        if not (STATE / name).exists():
            (STATE / name).write_text(f"failed: {e!r}")
        raise
    os._exit(0)


STATE.mkdir(exist_ok=True)
programs = {f"{path.parent.name}-{path.stem}": path for path in map(Path, sys.argv[1:])}
for name, program in programs.items():
    start(program, name)
deadline = time.monotonic() + PATIENCE_S
while time.monotonic() < deadline and not all((STATE / name).exists() for name in programs):
    time.sleep(0.1)
