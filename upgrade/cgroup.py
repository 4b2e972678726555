# SPDX-License-Identifier: MIT
"""Control groups, version 2: the tasks in one, and freezing them.

Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze" and "cgroup.events".
"""

import time
from collections.abc import Iterable
from contextlib import suppress

from upgrade.errors import UpgradeError
from upgrade.host import Host

MOUNT_POINT = "/sys/fs/cgroup"


def path(cgroup: str, name: str = "") -> str:
    """Return the path of a cgroup's directory or of a file in it."""
    return f"{MOUNT_POINT}/{cgroup.strip('/')}" + (f"/{name}" if name else "")


def tree(host: Host, cgroup: str) -> list[str]:
    """Return a cgroup and all below it, parents first."""
    found = [cgroup]
    for name in host.list(path(cgroup)):
        if host.path(path(cgroup, name)).is_dir():
            found += tree(host, f"{cgroup.rstrip('/')}/{name}")
    return found


def pids(host: Host, cgroup: str) -> list[int]:
    """Return the processes of a cgroup and of all below it."""
    found = []
    for each in tree(host, cgroup):
        found += [int(line) for line in host.read_or(path(each, "cgroup.procs"), "").split()]
    return sorted(set(found))


def is_frozen(host: Host, cgroup: str) -> bool:
    """Tell whether every task of a cgroup has stopped."""
    return "frozen 1" in host.read(path(cgroup, "cgroup.events")).splitlines()


def is_populated(host: Host, cgroup: str) -> bool:
    """Tell whether there is a process in a cgroup or below it."""
    return "populated 1" in host.read_or(path(cgroup, "cgroup.events"), "")


def freeze(host: Host, cgroups: Iterable[str], timeout_s: float) -> None:
    """Freeze several cgroups at once and wait until all their tasks have stopped.

    :raises UpgradeError: naming the tasks that did not stop in time; the caller thaws
    """
    names = list(cgroups)
    for cgroup in names:
        host.write(path(cgroup, "cgroup.freeze"), "1")
    deadline = time.monotonic() + timeout_s
    for cgroup in names:
        while not is_frozen(host, cgroup):
            if time.monotonic() > deadline:
                raise UpgradeError(
                    f"did not freeze within {timeout_s} s; not stopped: {_unstopped(host, cgroup)}",
                    subject=cgroup,
                    hint="a task in uninterruptible sleep (state D) waits for a device or a network file system",
                )
            time.sleep(0.0005)


def stat(host: Host, pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` behind the command's name, from ``state`` on (proc_pid_stat(5))."""
    return host.read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def parent(host: Host, pid: int) -> int:
    """Return the parent of a process."""
    return int(stat(host, pid)[1])


def ids(host: Host, cgroup: str) -> set[int]:
    """Return every number that has to be free in the new kernel: threads, and their groups and sessions."""
    found = set()
    for pid in pids(host, cgroup):
        found |= {int(thread) for thread in host.list(f"/proc/{pid}/task")}
        found |= {int(number) for number in stat(host, pid)[2:4]}
    return found


def thaw(host: Host, cgroup: str) -> None:
    """Let a cgroup's tasks run; nothing happens if it is gone."""
    if host.exists(path(cgroup, "cgroup.freeze")):
        host.write(path(cgroup, "cgroup.freeze"), "0")


def kill(host: Host, cgroup: str) -> None:
    """Have the kernel kill all tasks of a cgroup; nothing happens if it is gone."""
    if host.exists(path(cgroup, "cgroup.kill")):
        host.write(path(cgroup, "cgroup.kill"), "1")


def remove(host: Host, cgroup: str) -> None:
    """Remove a cgroup and all below it; those with tasks stay, and those above them."""
    for each in reversed(tree(host, cgroup)):
        with suppress(OSError):
            host.path(path(each)).rmdir()


def _unstopped(host: Host, cgroup: str) -> str:
    found = []
    for pid in pids(host, cgroup):
        stat = host.read_or(f"/proc/{pid}/stat", "")
        state = stat.rpartition(")")[2].split()[:1]
        if state == ["D"]:
            found.append(f"{pid} ({host.read_or(f'/proc/{pid}/comm', '?')}, state D)")
    return ", ".join(found) or "unknown"
