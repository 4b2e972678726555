# SPDX-License-Identifier: MIT
"""``seamless-upgrade restore``: called by the unit in the new kernel, as early as it can be.

Whatever happens here ends in containers that run and a report that says how.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable

from memfs import store
from upgrade import netconf, netlock, paths
from upgrade.clock import Clock
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.kexec.cmdline import session_of
from upgrade.process import run
from upgrade.restore import arrival
from upgrade.restore.arrival import Arrival
from upgrade.restore.restorer import Restored, Restorer, cold_start
from upgrade.session import Session

log = logging.getLogger(__name__)

NETWORK_S = 20.0


def main() -> int:
    """Restore the session that this kernel was entered for."""
    clock = Clock()
    begun_at = clock.tsc()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    host = Host()
    identity = session_of(host.command_line())
    if os.geteuid() != 0:
        log.error("seamless-upgrade: needs root")
        return ExitStatus.NOT_PRIVILEGED
    if identity is None:
        log.info("this kernel was not entered by an upgrade: nothing to restore")
        return ExitStatus.DONE
    if (paths.REPORTS / f"{identity}.json").exists():
        log.info("%s was restored already", identity)
        return ExitStatus.DONE
    try:
        arrived = arrival.open_store(host, identity)
    except (UpgradeError, OSError) as e:
        return _without_store(host, identity, str(e))
    return _restore(host, clock, arrived, begun_at)


def _restore(host: Host, clock: Clock, arrived: Arrival, begun_at: int) -> int:
    session = arrived.session
    problems: list[str] = []
    moments = {"restore begun": begun_at, "store open": clock.tsc()}
    if session.lock:
        netlock.lock(session.lock)
    try:
        arrival.set_wall_clock(arrived, clock)
    except OSError as e:
        problems.append(f"the wall clock could not be set: {e}")
    network = _in_background(lambda: problems.extend(netconf.restore(host, session.links, NETWORK_S)))
    restored = Restorer(host, clock, session, network.join).restore_all()
    moments["restored"] = clock.tsc()
    network.join()
    if session.lock:
        netlock.remove()
    moments["unlocked"] = clock.tsc()
    from upgrade.restore import summary  # the containers run: nothing is urgent any more

    status = summary.write(host, clock, arrived, restored, moments, problems)
    _release(arrived)
    return status


def _in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _release(arrived: Arrival) -> None:
    """Give range M back; a session is restored once."""
    try:
        store.unmount(paths.STORE)
        store.wipe(arrived.device)
    except (OSError, store.StoreFailed):
        log.warning("cannot release %s: %s", arrived.device, traceback.format_exc(limit=1))
    paths.PLAN.unlink(missing_ok=True)


def _without_store(host: Host, identity: str, reason: str) -> int:
    """Start everything from cold: the memory did not survive, or cannot be believed."""
    log.error("%s", reason)
    plan = arrival.plan_of(identity)
    results = (
        [] if plan is None else [_cold(host, plan, number, reason) for number in range(len(plan.containers))]
    )
    if os.path.ismount(paths.STORE):
        run(["umount", os.fspath(paths.STORE)], check=False)
    from upgrade.restore import summary

    return summary.write_without_store(host, identity, plan, results, reason)


def _cold(host: Host, plan: Session, number: int, reason: str) -> Restored:
    dumped = plan.containers[number]
    outcome, why = cold_start(host, dumped, reason)
    return Restored(dumped, outcome, why, 0, 0, 0)
