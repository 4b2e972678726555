# SPDX-License-Identifier: MIT
"""Runs in the guest: two trees in cgroups of their own, with a unix stream between them."""

import os
import signal
import socket
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup/workload")

here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
told = []
for name, own, other in (("pair-a", here, there), ("pair-b", there, here)):
    told.append(os.pipe())
    if os.fork() == 0:
        (CGROUPS / name).mkdir(parents=True)
        (CGROUPS / name / "cgroup.procs").write_text("0")
        os.setsid()
        os.chdir("/")
        os.write(told[-1][1], own.fileno().to_bytes())
        other.close()
        os.closerange(max(own.fileno(), other.fileno()) + 1, 100)
        signal.pause()
for reader, _ in told:
    os.read(reader, 1)
Path("/run/pair").touch()
