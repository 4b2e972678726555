# SPDX-License-Identifier: MIT
"""``seamless-upgrade restore``: called by the unit in the new kernel, as early as it can be.

Whatever happens here ends in containers that run and a report that says how.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Thread

from memfs import store
from upgrade import netconf, netlock, paths
from upgrade.clock import Clock
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.kexec.cmdline import session_of
from upgrade.process import run
from upgrade.restore import arrival, fdstore, frames
from upgrade.restore.arrival import Arrival
from upgrade.restore.frames import FrameMount
from upgrade.restore.ondemand import PageService
from upgrade.restore.restorer import Restored, Restorer, cold_start, work_directory
from upgrade.session import Session

NETWORK_S = 20.0
LOCAL_FILES_S = 90.0


def main() -> int:
    """Restore the session that this kernel was entered for."""
    try:
        return _main()
    finally:
        fdstore.notify("READY=1")  # whatever came of it: the boot waits for this


def _main() -> int:
    clock = Clock()
    begun_at = clock.tsc()
    host = Host()
    identity = session_of(host.command_line())
    if os.geteuid() != 0:
        say("seamless-upgrade: needs root")
        return ExitStatus.NOT_PRIVILEGED
    if identity is None:
        say("this kernel was not entered by an upgrade: nothing to restore")
        return ExitStatus.DONE
    if not claim():
        say(f"{identity} was restored already in this boot")
        return ExitStatus.DONE
    in_background(
        lambda: run(["criu", "check"], check=False)
    )  # fills /run/criu.kdat while the range is opened
    try:
        arrived = arrival.open_store(host, identity)
    except Exception as e:
        return _without_store(host, identity, str(e))
    return _restore(host, clock, arrived, begun_at)


def say(text: str) -> None:
    """Narrate, to the journal; importing ``logging`` would be downtime."""
    print(text, file=sys.stderr, flush=True)


def claim() -> bool:
    """Take the session of this boot; a second start must not restore over what runs."""
    paths.make_runtime()
    try:
        os.close(os.open(paths.CLAIM, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def _restore(host: Host, clock: Clock, arrived: Arrival, begun_at: int) -> int:
    session = arrived.session
    moments = {"restore begun": begun_at}
    problems: list[str] = []
    pages = PageService(host, session, work_directory, say)
    pages.start()
    locked = session.lock and attempt(
        lambda: netlock.lock(session.lock), "the network could not be locked", problems
    )
    attempt(lambda: arrival.set_wall_clock(arrived, clock), "the wall clock was left alone", problems)
    network = in_background(lambda: problems.extend(netconf.restore(host, session.links, NETWORK_S)))
    frame_mount = None
    if session.frames is not None:
        frame_mount = FrameMount(host, session, session.frames)
        frame_mount.start()
    restorer = Restorer(
        host, clock, session if locked else replace(session, lock=""), network.join, frame_mount, pages
    )
    attempt(wait_for_local_files, "not all local file systems were there", problems)
    restored = restorer.restore_all()
    moments["restored"] = clock.tsc()
    if locked:
        attempt(netlock.remove, "the network lock could not be removed", problems)
    moments["unlocked"] = clock.tsc()
    network.join()
    from upgrade.restore import summary  # the containers run: nothing is urgent any more

    problems += pages.problems
    status = _reported(lambda: summary.write(host, clock, arrived, restored, moments, problems))
    fdstore.notify("READY=1", "STATUS=the containers run")  # the boot goes on beside the rest of the memory
    try:
        memory = pages.wait()
        pages.end()
    except Exception as e:  # who still needs the frames keeps them
        reason = str(e)
        return _reported(lambda: summary.degrade(session, reason))
    status = _reported(lambda: summary.complete(clock, arrived, memory, status))
    if frame_mount is not None:
        frame_mount.join()
    _release(host, arrived)
    return status


def _reported(write: Callable[[], ExitStatus]) -> ExitStatus:
    """Write a report; whatever keeps it from being written must not keep the ranges from being given back."""
    try:
        return write()
    except Exception as e:
        say(f"the report cannot be written: {e}")
        return ExitStatus.DEGRADED


def attempt(action: Callable[[], object], otherwise: str, problems: list[str]) -> bool:
    """Do something that must not keep the containers from being restored; note where it failed."""
    try:
        action()
    except Exception as e:
        problems.append(f"{otherwise}: {e}")
        say(problems[-1])
        return False
    return True


def wait_for_local_files() -> None:
    """Wait for what ``/etc/fstab`` mounts: the files and volumes of the containers.

    Asking and not ``systemctl start``: that would begin a second transaction, and start again whatever of the boot
    has ended already.
    """
    deadline = time.monotonic() + LOCAL_FILES_S
    while run(["systemctl", "is-active", "local-fs.target"], check=False).stdout.strip() != "active":
        if time.monotonic() > deadline:
            raise UpgradeError("not active in time", subject="local-fs.target")
        time.sleep(0.02)


def in_background(work: Callable[[], object]) -> Thread:
    """Do something beside the rest."""
    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread


def _release(host: Host, arrived: Arrival) -> None:
    """Give the ranges back; a session is restored once."""
    for problem in frames.give_back(host, arrived.session.containers):
        say(problem)
    try:
        store.unmount(paths.STORE)
        store.wipe(arrived.device)
    except (OSError, store.StoreFailed) as e:
        say(f"cannot release {arrived.device}: {e}")
    paths.PLAN.unlink(missing_ok=True)


def _without_store(host: Host, identity: str, reason: str) -> int:
    """Start everything from cold: the memory did not survive, or cannot be believed."""
    say(reason)
    attempt(wait_for_local_files, "not all local file systems were there", [])
    plan = arrival.plan_of(identity)
    results = (
        [] if plan is None else [_cold(host, plan, number, reason) for number in range(len(plan.containers))]
    )
    if os.path.ismount(paths.STORE):
        run(["umount", os.fspath(paths.STORE)], check=False)
    from upgrade.restore import summary

    status = _reported(lambda: summary.write_without_store(host, identity, plan, results, reason))
    for problem in frames.give_back(host):
        say(problem)
    paths.PLAN.unlink(missing_ok=True)
    return status


def _cold(host: Host, plan: Session, number: int, reason: str) -> Restored:
    outcome, why = cold_start(host, plan.containers[number], reason)
    return Restored(plan.containers[number], outcome, why, 0)
