# SPDX-License-Identifier: MIT
"""Runs in the guest: what the programs in ``undumpable`` and ``dumpable`` share."""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

STATE = Path(os.environ.get("CONDITIONS", "/run/conditions"))
PROGRAM = Path(sys.argv[0]).resolve()
NAME = f"{PROGRAM.parent.name}-{PROGRAM.stem}"
CGROUPS = Path("/sys/fs/cgroup")
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: object) -> int:
    """Make a system call; integers go as 64 bits, since a variadic function gets 32 otherwise."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def call(name: str, *arguments: object) -> int:
    """Call a function of libc."""
    result = int(getattr(libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """Mount something (mount(2))."""
    words = [None if text is None else text.encode() for text in (source, target, kind)]
    data = None if options is None else options.encode()
    call("mount", words[0], words[1], words[2], ctypes.c_ulong(flags), data)


def directory(name: str = "") -> Path:
    """Return a directory of the program's own."""
    found = Path("/var/tmp" if STATE.parent == Path("/run") else STATE) / "files" / NAME / name
    found.mkdir(parents=True, exist_ok=True)
    return found


def leave_cgroup() -> None:
    """Move to a cgroup that is not dumped."""
    if (CGROUPS / "cgroup.controllers").exists():
        (CGROUPS / "outside").mkdir(exist_ok=True)
        (CGROUPS / "outside/cgroup.procs").write_text(str(os.getpid()))


def outside(work: Callable[[], object]) -> None:
    """Have a process that is neither in the cgroup nor a descendant do something; return when it has, it stays."""
    reader, writer = os.pipe()
    waiting, go = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(reader)
            os.close(go)
            leave_cgroup()
            os.read(
                waiting, 1
            )  # till the signal of the child's end is over: nobody lets a traced task have it
            os.close(waiting)
            try:
                kept = work()
                os.write(writer, b"done")
            except OSError as e:
                os.write(writer, str(e).encode())
                os._exit(1)
            os.close(writer)
            while kept is not STATE:
                time.sleep(3600)
        os._exit(0)
    os.wait()
    for fd in (go, waiting, writer):
        os.close(fd)
    said = os.read(reader, 200).decode()
    os.close(reader)
    if said != "done":
        raise OSError(f"outside: {said or 'it has ended'}")


def ready() -> None:
    """Say that the condition is there."""
    _say("ready")


def hold(make: Callable[[], object]) -> None:
    """Make a condition, say so, and keep it."""
    try:
        kept = make()
    except OSError as e:
        _say(f"impossible: {e}")
        sys.exit(1)
    ready()
    while kept is not STATE:
        time.sleep(3600)


def _say(text: str) -> None:
    (STATE / f"{NAME}.new").write_text(text)
    (STATE / f"{NAME}.new").rename(STATE / NAME)


STATE.mkdir(exist_ok=True)
(STATE / f"{NAME}.pid").write_text(str(os.getpid()))
