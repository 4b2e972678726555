# SPDX-License-Identifier: MIT
"""Dumps for the page server, a stand-in for systemd's FD store, and tasks that are restored on demand."""

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memfs import libc
from upgrade.criu import pagemap_messages
from upgrade.pagemaps import MAGIC, PE_LAZY, PE_PRESENT
from upgrade.userfaultfd import PAGE_BYTES

ROOT = Path(__file__).resolve().parents[3]
TASK = Path(__file__).with_name("lazy_task.py")
# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/kcmp.h
SYS_KCMP = 312
KCMP_FILE = 0


def write_pagemap(path: Path, pages_id: int, entries: Iterable[dict[str, int]]) -> None:
    """Write a pagemap as CRIU 4.1 does."""
    proto = pagemap_messages()
    parts = [proto.pagemap_head(pages_id=pages_id)] + [proto.pagemap_entry(**entry) for entry in entries]
    data = [part.SerializeToString() for part in parts]
    path.write_bytes(MAGIC + b"".join(struct.pack("<I", len(part)) + part for part in data))


def page(number: int, seed: int) -> bytes:
    """Return the contents of a page."""
    return struct.pack("<Q", (seed << 40) + number + 1) * (PAGE_BYTES // 8)


def write_dump(directory: Path, pid: int, runs: Iterable[tuple[int, int]]) -> None:
    """Write a dump of lazy runs (address, pages): the Nth page of all has the contents ``page(N, pid)``.

    A page that is not lazy comes before each run, as CRIU would read it itself.
    """
    entries, contents, number = [], [], 0
    for address, count in runs:
        entries.append({"vaddr": address - PAGE_BYTES, "nr_pages": 1, "flags": PE_PRESENT})
        entries.append({"vaddr": address, "nr_pages": count, "flags": PE_PRESENT | PE_LAZY})
        contents.append(b"\xff" * PAGE_BYTES)
        contents += [page(number + n, pid) for n in range(count)]
        number += count
    write_pagemap(directory / f"pagemap-{pid}.img", pid, entries)
    (directory / f"pages-{pid}.img").write_bytes(b"".join(contents))


# A background that takes its time, so that tasks and kills come in between.
_SERVER = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from upgrade.restore import lazytask
from upgrade.restore.pageserver import main
if {pace!r}:
    lazytask.CHUNK_PAGES = 16
    pull = lazytask.Task.pull
    lazytask.Task.pull = lambda self, chunk: (time.sleep({pace!r}), pull(self, chunk))
{more}
sys.exit(main(Path({description!r})))
"""

DEADLY = """
import os, signal
def deadly(owner, name, when, moment, flag):
    call = getattr(owner, name)
    def replaced(*args):
        if moment == "after":
            call(*args)
        if when(*args) and not os.path.exists(flag):
            os.close(os.open(flag, os.O_CREAT))
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "before":
            return call(*args)
    setattr(owner, name, replaced)
from upgrade.restore import criuline, fdstore, journal, keeper, orphans, pageserver
"""
"""Makes a call kill the server, once: the first for which ``when`` holds, and no file is at ``flag``."""

# Puts the descriptors where systemd does, and becomes the server.
_START = """
import fcntl, json, os, sys
fds = json.loads(sys.argv[1])
high = [(name, fcntl.fcntl(fd, fcntl.F_DUPFD, 500)) for name, fd in fds]
for number, (name, fd) in enumerate(high):
    os.dup2(fd, 3 + number, inheritable=True)
    os.close(fd)
os.closerange(3 + len(high), 500)
if high:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)),
                      LISTEN_FDNAMES=":".join(name for name, _ in high))
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""


def same(one: int, other: int) -> bool:
    """Tell whether two descriptors are of the same open file (kcmp(2))."""
    ours = os.getpid()
    return not libc.call("kcmp", SYS_KCMP, *map(ctypes.c_long, (ours, ours, KCMP_FILE, one, other)))


class Manager:
    """Keeps the descriptors of a page server and starts it anew when it fails, as systemd does."""

    def __init__(self, description: Path, pace: float = 0, more: str = "") -> None:
        """:param more: Python that the server runs before it starts."""
        self.code = _SERVER.format(
            path=[str(ROOT), *sys.path], description=str(description), pace=pace, more=more
        )
        self.path = description.with_name("notify")
        self.line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.line.bind(str(self.path))
        self.line.settimeout(0.01)
        self.fds: dict[str, int] = {}
        self.names: list[str] = []
        self.ready = threading.Event()
        self.ended = threading.Event()
        self.starts = 0
        self.status: int | None = None
        self.hold = False
        self.process = self._start()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def __enter__(self) -> "Manager":
        assert self.ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.hold = True
        self.process.kill()
        self.thread.join()
        for fd in self.fds.values():
            os.close(fd)
        self.line.close()

    def kill(self) -> None:
        """Kill the server in the middle of whatever it does; it is started anew."""
        self.process.send_signal(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the server where it is; it can still be killed."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def _start(self) -> "subprocess.Popen[bytes]":
        self.ready.clear()
        self.starts += 1
        self.group, theirs = os.pipe()
        high = fcntl.fcntl(theirs, fcntl.F_DUPFD, 500)  # not among what the server is given
        os.close(theirs)
        try:
            return subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(list(self.fds.items())), self.code],
                pass_fds=[*self.fds.values(), high],
                env={**os.environ, "NOTIFY_SOCKET": str(self.path)},
            )
        finally:
            os.close(high)

    def _gone(self) -> bool:
        """Tell whether nothing is left of the server: it and its keeper have the other end of a pipe."""
        return bool(select.select([self.group], [], [], 0)[0])

    def _run(self) -> None:
        while True:
            status = self.process.poll()
            gone = status is not None and self._gone()
            while self._take():
                pass
            if not gone:
                continue
            os.close(self.group)
            if status == 0 or self.hold:
                self.status = status
                self.ended.set()
                return
            self.process = self._start()

    def _take(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self.line, 4096, 4)
        except TimeoutError:
            return False
        told = dict(line.split("=", 1) for line in data.decode().split("\n"))
        if "FDSTORE" in told:
            assert told["FDPOLL"] == "0"
            self.names.append(told["FDNAME"])
            if any(same(fd, fds[0]) for fd in self.fds.values()):
                os.close(fds[0])
                return True
            if told["FDNAME"] in self.fds:
                os.close(self.fds.pop(told["FDNAME"]))
            self.fds[told["FDNAME"]] = fds[0]
        elif "BARRIER" in told:
            os.close(fds[0])
        elif "FDSTOREREMOVE" in told:
            os.close(self.fds.pop(told["FDNAME"]))
        elif "READY" in told:
            self.ready.set()
        return True


def start_task(work: Path, pid: int, scenario: str, **parameters: Any) -> "subprocess.Popen[str]":
    """Start a task that asks the page server for its memory; it prints what was wrong, or ``right``."""
    told = {"socket": str(work / "lazy-pages.socket"), "pid": pid, "scenario": scenario, **parameters}
    return subprocess.Popen(
        [sys.executable, str(TASK), json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


def result(task: "subprocess.Popen[str]", told: str | None = None) -> str:
    """Return what a task printed, after it was told something."""
    try:
        output, _ = task.communicate(told, timeout=60)
    except subprocess.TimeoutExpired:
        task.kill()
        raise
    return output.strip()
