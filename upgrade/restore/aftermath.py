# SPDX-License-Identifier: MIT
"""What a restore process that died has left behind: its helpers, and containers that it was just restoring.

A container whose tasks cannot have run since the jump is restored from its images again. One that may have run is
restored if its restore has come to its end without us; otherwise it is started from cold.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from upgrade import cgroup, netlock, paths
from upgrade.clock import Clock
from upgrade.engines import Container, engine
from upgrade.engines.base import RESTORED
from upgrade.host import Host
from upgrade.restore import nudge
from upgrade.restore.ledger import Back, Ledger
from upgrade.restore.restorer import cold_start, put_back, work_directory
from upgrade.session import Dumped

KILL_S = 10.0
POLL_S = 0.02
DIED = "the restore process died while it restored it"

Say = Callable[[str], None]


def end_helpers(host: Host, ledger: Ledger, say: Say) -> None:
    """Return when nothing works any more that the process which died had started.

    Where it may have let tasks run its helpers are waited for as long as they may take: runc restores without us.
    """
    unsettled = ledger.unsettled()
    places = {paths.RESTORE_CGROUP, *(place for begun in unsettled.values() for place in begun.helpers)}
    patience_s = max((b.limit_s for number, b in unsettled.items() if number in ledger.may_run), default=0.0)
    deadline = time.monotonic() + patience_s
    while left := _processes(host, places):
        if time.monotonic() >= deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= deadline + KILL_S:
            say(f"processes of the restore that died do not end: {left}")
            return
        time.sleep(POLL_S)


def _processes(host: Host, places: Iterable[str]) -> list[int]:
    return [pid for place in places for pid in cgroup.pids(host, place) if pid != os.getpid()]


def settle(host: Host, clock: Clock, ledger: Ledger, containers: Sequence[Dumped]) -> None:
    """Decide about each container that was being restored; those without an entry then are to be restored again."""
    for number, begun in ledger.unsettled().items():
        if number >= len(containers):  # the plan is gone, too
            continue
        dumped = containers[number]
        if number not in ledger.may_run:
            with suppress(Exception):  # whatever it was: the restore says what it means
                end_tasks(host, dumped.container)
        elif has_finished(host, dumped):
            reason = f"{DIED}; it was found running"
            ledger.end(number, Back("restored", reason, clock.tsc(), begun.lazy))
        else:
            with suppress(Exception):  # whatever it was: the cold start says what it means
                end_tasks(host, dumped.container)
            outcome, reason = cold_start(host, dumped, f"{DIED}; it may have run already")
            ledger.end(number, Back(outcome, reason, clock.tsc()))


def has_finished(host: Host, dumped: Dumped) -> bool:
    """Tell whether a restore came to its end: CRIU writes its statistics once the tasks run (criu/cr-restore.c)."""
    ended = any((work_directory(dumped) / name).exists() for name in ("stats-restore", RESTORED))
    return ended and engine(host, dumped.container.engine).runs(dumped.container)


def end_tasks(host: Host, container: Container) -> None:
    """Return when nothing is left of a container: its process ids are needed again."""
    pids = cgroup.pids(host, container.cgroup)
    engine(host, container.engine).clean_up(container)
    deadline = time.monotonic() + KILL_S
    while any(host.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def let_through(ledger: Ledger, containers: Sequence[Dumped], rules: str = "") -> None:
    """Take those out of the network lock that run again."""
    for number, back in ledger.back.items():
        dumped = containers[number]
        if dumped.container.host_network or dumped.container.addresses:
            with suppress(OSError):
                put_back(dumped)
            netlock.unlock(number, rules)
        if back.outcome == "restored":
            nudge.peers(dumped.peers)


def describe(ledger: Ledger, containers: Sequence[Dumped]) -> str:
    """Return what the report says of the process that died."""
    names = [containers[number].container.name for number in sorted(ledger.interrupted)]
    while_ = f" while it restored {', '.join(names)}" if names else ""
    return f"the restore process died{while_}, and was started again"
