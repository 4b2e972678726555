# SPDX-License-Identifier: MIT
"""Finding the session in the new kernel, and deciding whether it can be believed."""

import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memfs import pmem, ranges, store
from upgrade import paths
from upgrade.clock import Clock, Frequency, frequency, wall_ns
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.process import run
from upgrade.restore import frames
from upgrade.session import FILE, JUMP_FILE, Session, SessionDamaged

PMEM_TIMEOUT_S = 30
# At most this long from the jump until the new kernel's clock starts
ENTERING_NS = 300 * 10**9


@dataclass(frozen=True, slots=True)
class Arrival:
    """A session that came across, and the clock to measure with."""

    session: Session
    rate: Frequency
    jumped_at: int  # TSC
    device: Path


def open_store(host: Host, identity: str) -> Arrival:
    """Mount range M and read the session ``identity`` from it.

    :raises UpgradeError: if there is no such session or it cannot be believed; the containers have to be started
        from cold then
    """
    found = ranges.parse_command_line(host.command_line())
    if not found:
        raise UpgradeError("no memmap= range on the command line of this kernel", subject=identity)
    run(["modprobe", pmem.MODULES[0]])
    frames.hold_back(host, tuple(found[1:]))
    run(["modprobe", "--all", *pmem.MODULES])
    try:
        device = pmem.wait(found[0], PMEM_TIMEOUT_S)
        if store.label(device) != store.LABEL:
            raise UpgradeError("holds no session: its contents did not survive", subject=str(found[0]))
        if not os.path.ismount(paths.STORE):  # by a restore process that died
            store.mount(device, paths.STORE)
        session = Session.load(paths.STORE / FILE)
    except (TimeoutError, store.StoreFailed, SessionDamaged) as e:
        raise UpgradeError(str(e), subject=str(found[0])) from e
    if session.id != identity:
        raise UpgradeError(f"holds session {session.id} instead of {identity}", subject=str(found[0]))
    if session.kernel_to != host.release():
        raise UpgradeError(f"is for {session.kernel_to}, but {host.release()} runs", subject=identity)
    return Arrival(session, frequency(session.ties[0], session.ties[-1]), _jumped_at(session), device)


def _jumped_at(session: Session) -> int:
    data = (paths.STORE / JUMP_FILE).read_bytes()
    tsc: int = struct.unpack("<Q", data)[0] if len(data) == 8 else 0
    return tsc or session.stamps["quiesced"]


def set_wall_clock(arrival: Arrival, clock: Clock) -> None:
    """Set the wall clock right, which came from the real time clock's whole seconds.

    :raises UpgradeError: if the counter does not seem to have run on; the clock is left alone then
    """
    now = clock.tsc()
    since_jump_ns = arrival.rate.ns(now - arrival.jumped_at)
    if not 0 <= since_jump_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME) <= ENTERING_NS:
        raise UpgradeError("the time stamp counter did not run on across the jump")
    time.clock_settime_ns(time.CLOCK_REALTIME, wall_ns(arrival.session.ties[-1], now, arrival.rate))


def plan_of(identity: str) -> Session | None:
    """Return what the old kernel wrote to disk before the freeze, if it is about this session."""
    try:
        session = Session.load(paths.PLAN)
    except SessionDamaged:
        return None
    return session if session.id == identity else None


def summarize(lines: Sequence[str], limit: int = 3) -> str:
    """Return the first lines of many as one."""
    more = f" and {len(lines) - limit} more" if len(lines) > limit else ""
    return "; ".join(lines[:limit]) + more
