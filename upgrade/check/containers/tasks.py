# SPDX-License-Identifier: MIT
"""Tasks that CRIU cannot stop, or whose state it does not know (criu/seize.c; compel, ``compel_wait_task``)."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from upgrade.check.containers.trouble import Trouble, lasts, tell
from upgrade.check.model import Check, Finding
from upgrade.check.processes import Process, by_container, status_of
from upgrade.check.situation import Situation
from upgrade.host import Host

# criu/include/parasite.h, PARASITE_MAX_GROUPS: what is left of a page. Its line in ``status`` has to fit in one, too
# (criu/bfd.c).
MOST_GROUPS = 960
LINE_BYTES = 4096
ZOMBIE, UNINTERRUPTIBLE = "Z", "D"


def tasks(situation: Situation) -> Iterator[Finding]:
    """Look at the state of every task."""
    found = (
        trouble
        for _, members in by_container(situation.processes)
        for trouble in _of_container(situation.host, members)
    )
    count = sum(len(process.threads) for process in situation.processes)
    yield from tell(found, "tasks", f"{count}, none traced, stuck or half dead")


def _of_container(host: Host, members: Sequence[Process]) -> Iterator[Trouble]:
    pids = {process.pid for process in members}
    for process in members:
        yield from _itself(process)
        yield from _outside(host, process, pids)
        for thread in process.threads:
            status = _status(host, process, thread)
            if status:
                yield from _thread(host, process, thread, status)
        yield from _credentials(process)


def _itself(process: Process) -> Iterator[Trouble]:
    if process.pid == os.getpid() and process.host.root == Host().root:
        yield Trouble(
            process,
            "is this very command",
            "/proc/self/cgroup",
            "the command would be frozen and dumped together with the container",
            "run it from outside of the container's cgroup",
        )


def _outside(host: Host, process: Process, pids: set[int]) -> Iterator[Trouble]:
    """Look for children in other cgroups: CRIU dumps all descendants, but only the cgroup is frozen."""
    for child in process.children:
        if child in pids:
            continue
        status = status_of(host.read_or(f"/proc/{child}/status", ""))
        if status and not status["State"].startswith(ZOMBIE):
            yield Trouble(
                process,
                f"has a child {child} ({status['Name']}) in another cgroup",
                f"/proc/{child}/cgroup",
                "CRIU dumps all descendants, but what is not in the container's cgroup is not frozen",
                f"move it: echo {child} > /sys/fs/cgroup{process.container.cgroup}/cgroup.procs, or end it",
            )


def _thread(host: Host, process: Process, thread: int, status: Mapping[str, str]) -> Iterator[Trouble]:
    source = f"/proc/{process.pid}/task/{thread}/status"
    told = partial(Trouble, process, source=source)
    named = "" if thread == process.pid else f"thread {thread} "
    tracer = status.get("TracerPid", "0")
    if tracer != "0":
        yield told(
            what=f"{named}is traced by process {tracer} ({host.read_or(f'/proc/{tracer}/comm', '?')})",
            reason="a task can have one tracer only, and CRIU has to be it",
            remedy=f"end the debugger or strace (process {tracer})",
        )
    state = status.get("State", "?")[:1]
    if state == ZOMBIE and lasts(partial(_half_dead, process, thread)):
        yield told(
            what=f"{named or 'its first thread '}has ended, but others of its threads have not",
            reason="CRIU cannot dump a process of which threads are dead",
            remedy="restart the program",
        )
    if state == UNINTERRUPTIBLE and _stuck(host, process, thread):
        yield told(
            what=f"{named}is in uninterruptible sleep (state D){_where(host, process, thread)}",
            reason="it cannot be frozen: it waits for a device, a network file system, or a child of vfork(2)",
            remedy="see what it waits for (/proc/PID/stack), and end that",
        )
    pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
    if pending & 1 << (signal.SIGTRAP - 1):
        yield told(
            what=f"{named}has a SIGTRAP pending",
            reason="CRIU needs this signal for itself, and cannot dump a task that is about to get it",
            remedy="restart the program",
        )


def _half_dead(process: Process, thread: int) -> bool:
    """Tell whether a thread has ended, but others have not; a process that ends looks so for a moment."""
    now = process.again()
    state = _status(process.host, now, thread).get("State", "")
    return state.startswith(ZOMBIE) and (thread != process.pid or len(now.threads) > 1)


def _stuck(host: Host, process: Process, thread: int) -> bool:
    return lasts(lambda: _status(host, process, thread).get("State", "")[:1] == UNINTERRUPTIBLE)


def _where(host: Host, process: Process, thread: int) -> str:
    where = host.read_or(f"/proc/{process.pid}/task/{thread}/wchan", "0")
    return f" in {where}" if where not in ("", "0") else ""


def _credentials(process: Process) -> Iterator[Trouble]:
    told = partial(Trouble, process, source=f"{process.directory}/status")
    groups = len(process.status.get("Groups", "").split())
    if groups > MOST_GROUPS or len(process.status.get("Groups", "")) + len("Groups:\t \n") > LINE_BYTES:
        yield told(
            what=f"is in {groups} groups",
            reason="the groups of a task have to fit in a page of CRIU's, as numbers and as text",
            remedy="start it with fewer supplementary groups",
        )
    session = process.status.get("NSsid", "1").split()
    if session and session[-1] == "0" and not process.container.host_pids:
        yield told(
            what="is in a session whose leader is outside of the container's PID namespace",
            reason="CRIU cannot dump a task without the leader of its session",
            remedy="end it (it was started from outside, as docker exec or nsenter do)",
        )


def _status(host: Host, process: Process, thread: int) -> Mapping[str, str]:
    if thread == process.pid and len(process.threads) == 1:
        return status_of(host.read_or(f"{process.directory}/status", ""))
    return status_of(host.read_or(f"{process.directory}/task/{thread}/status", ""))


CHECKS = (Check("containers.tasks", "their tasks can be stopped and dumped", tasks),)
