# SPDX-License-Identifier: MIT
"""``seamless-upgrade restore``: called by the unit in the new kernel, as early as it can be.

Whatever happens here ends in containers that run and a report that says how.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
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
from upgrade.restore.ledger import Back, Ledger
from upgrade.restore.ondemand import PageService
from upgrade.restore.restorer import Restorer, cold_start, is_late, of, work_directory
from upgrade.session import Session

NETWORK_S = 20.0
LOCAL_FILES_S = 90.0


def main() -> int:
    """Restore the session that this kernel was entered for."""
    try:
        return _main()
    finally:
        fdstore.notify("READY=1")  # whatever came of it: the boot waits for this
        tell_all_back()


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
    paths.make_runtime()
    ledger = Ledger.take(paths.LEDGER, begun_at)
    if ledger is None:
        say(f"{identity} is being restored by another process")
        return ExitStatus.DONE
    if ledger.ended:
        say(f"{identity} was restored already in this boot")
        return ExitStatus.DONE
    if ledger.starts > 1:
        from upgrade.restore import aftermath

        say("the restore process before this one died")
        attempt(lambda: aftermath.end_helpers(host, ledger, say), "what it had started was left", [])
    in_background(
        lambda: run(["criu", "check"], check=False)
    )  # fills /run/criu.kdat while the range is opened
    try:
        arrived = arrival.open_store(host, identity)
    except Exception as e:
        return _without_store(host, clock, identity, ledger, str(e))
    if ledger.status is not None:
        return _go_on(host, clock, arrived, ledger)
    return _restore(host, clock, arrived, ledger)


def say(text: str) -> None:
    """Narrate, to the journal; importing ``logging`` would be downtime."""
    print(text, file=sys.stderr, flush=True)


def _restore(host: Host, clock: Clock, arrived: Arrival, ledger: Ledger) -> int:
    session = arrived.session
    problems: list[str] = []
    again = ledger.starts > 1
    if again:
        from upgrade.restore import aftermath

        if any(is_late(host, dumped) for dumped in session.containers):
            let_boot_go_on()  # what is started from cold may need it
        attempt(
            lambda: aftermath.settle(host, clock, ledger, session.containers),
            "not all is cleared away",
            problems,
        )
    pages = _page_service(host, session, ledger)
    locked = session.lock and attempt(
        lambda: netlock.lock(session.lock), "the network could not be locked", problems
    )
    if again:
        attempt(
            lambda: aftermath.let_through(ledger, session.containers, session.lock),
            "the network stays locked",
            problems,
        )
    if all(is_late(host, dumped) for dumped in session.containers):
        let_boot_go_on()
    attempt(lambda: arrival.set_wall_clock(arrived, clock), "the wall clock was left alone", problems)
    network = in_background(lambda: problems.extend(netconf.restore(host, session.links, NETWORK_S)))
    frame_mount = None
    if session.frames is not None:
        frame_mount = FrameMount(host, session, session.frames)
        frame_mount.start()
    restorer = Restorer(
        host,
        clock,
        session if locked else replace(session, lock=""),
        ledger,
        network.join,
        frame_mount,
        pages,
    )
    attempt(wait_for_local_files, "not all local file systems were there", problems)
    restored = restorer.restore_all(let_boot_go_on)
    if locked:
        attempt(netlock.remove, "the network lock could not be removed", problems)
    tell_all_back()
    network.join()
    from upgrade.restore import summary  # the containers run: nothing is urgent any more

    problems += pages.problems
    faults: list[str] = []
    if again:
        (faults if ledger.interrupted else problems).append(aftermath.describe(ledger, session.containers))
    status = _reported(
        lambda: summary.write(host, clock, arrived, restored, ledger.begun_at, problems, faults)
    )
    attempt(lambda: ledger.report(status), "it is not noted that the report is written", problems)
    return _finish(host, clock, arrived, ledger, pages, status, frame_mount)


def _page_service(host: Host, session: Session, ledger: Ledger) -> PageService:
    pages = PageService(host, session, work_directory, say)
    if ledger.starts > 1:
        pages.resume({session.containers[n].directory for n, back in ledger.back.items() if back.lazy})
    else:
        pages.start()
    return pages


def _go_on(host: Host, clock: Clock, arrived: Arrival, ledger: Ledger) -> int:
    """Do what a process that died after its report has left: all containers run."""
    from upgrade.restore import summary

    text = "the restore process died when all containers ran already, and was started again"
    attempt(lambda: summary.warn(arrived.session, text), "the report cannot be changed", [])
    pages = _page_service(host, arrived.session, ledger)
    return _finish(host, clock, arrived, ledger, pages, ExitStatus(ledger.status or 0), None)


def _finish(
    host: Host,
    clock: Clock,
    arrived: Arrival,
    ledger: Ledger,
    pages: PageService,
    status: ExitStatus,
    frame_mount: FrameMount | None,
) -> int:
    """See the rest of the memory come, and give the ranges back."""
    from upgrade.restore import summary

    session = arrived.session
    fdstore.notify("READY=1", "STATUS=the containers run")  # the boot goes on beside the rest of the memory
    services = [found[0] for d in session.containers if (found := d.container.service)]
    for problem in _settle(host, services):
        say(problem)
        attempt(partial(summary.warn, session, problem), "the report cannot be changed", [])
    status, missing = _memory_comes(clock, arrived, pages, status)

    def warn(text: str) -> None:
        say(text)
        fdstore.notify(f"STATUS={text}")
        attempt(lambda: summary.warn(session, text), "the report cannot be changed", [])

    pages.end(warn)  # who still needs the frames keeps them
    for name, memory in pages.memory().items():
        if name in missing and memory.complete_ns is not None and not memory.error:
            warn(f"the memory of {name} has come after all")
    if frame_mount is not None:
        frame_mount.join()
    _release(host, arrived)
    attempt(ledger.finish, "it is not noted that nothing is left to do", [])
    return status


def _settle(host: Host, services: list[str]) -> list[str]:
    """Make the starts of services their own again; return what went wrong, a line each."""
    if not services:
        return []
    from upgrade.engines import unit

    return unit.settle(host, services)


def _memory_comes(
    clock: Clock, arrived: Arrival, pages: PageService, status: ExitStatus
) -> tuple[ExitStatus, set[str]]:
    """Wait for memory as long as it comes, and add it to the report; return whose has not come in time."""
    from upgrade.restore import summary

    try:
        memory = pages.wait()
    except Exception as e:
        say(f"it is not known how much memory has come: {e}")
        return ExitStatus.DEGRADED, set()
    status = _reported(lambda: summary.complete(clock, arrived, memory, status))
    return status, {name for name, each in memory.items() if each.complete_ns is None}


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


def let_boot_go_on() -> None:
    """Have systemd go on with what waits for us: all that needs nothing of it is back, the rest waits for it."""
    fdstore.notify("READY=1")


def tell_all_back() -> None:
    """Let start what may start containers (``seamless-upgrade-restored.service``)."""
    with suppress(OSError):
        paths.BACK.touch()


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


def _without_store(host: Host, clock: Clock, identity: str, ledger: Ledger, reason: str) -> int:
    """Start from cold what does not run: the memory did not survive, or cannot be believed."""
    say(reason)
    if ledger.status is None:
        status = _start_from_cold(host, clock, identity, ledger, reason)
        attempt(lambda: ledger.report(status), "it is not noted that the report is written", [])
    else:  # a process that died had released the memory already
        status = ExitStatus(ledger.status)
    if os.path.ismount(paths.STORE):
        run(["umount", os.fspath(paths.STORE)], check=False)
    for problem in frames.give_back(host):
        say(problem)
    paths.PLAN.unlink(missing_ok=True)
    attempt(ledger.finish, "it is not noted that nothing is left to do", [])
    return status


def _start_from_cold(host: Host, clock: Clock, identity: str, ledger: Ledger, reason: str) -> ExitStatus:
    attempt(wait_for_local_files, "not all local file systems were there", [])
    plan = arrival.plan_of(identity)
    containers = plan.containers if plan is not None else ()
    if any(is_late(host, dumped) for dumped in containers):
        let_boot_go_on()
    if ledger.starts > 1:
        from upgrade.restore import aftermath

        attempt(lambda: aftermath.settle(host, clock, ledger, containers), "not all is cleared away", [])
    for number, dumped in enumerate(containers):
        if number not in ledger.back:
            back = Back(*cold_start(host, dumped, reason), 0)
            attempt(partial(ledger.end, number, back), "what became of a container is not noted", [])
    results = [of(dumped, ledger.back[number]) for number, dumped in enumerate(containers)]
    from upgrade.restore import summary

    return _reported(lambda: summary.write_without_store(host, identity, plan, results, reason))
