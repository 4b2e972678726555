# SPDX-License-Identifier: MIT
"""Restoring the containers in parallel; whatever cannot be restored is started from cold."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from memfs import checksums
from upgrade import cgroup, netlock, paths
from upgrade.clock import Clock, frequency
from upgrade.criu import Criu
from upgrade.engines import engine
from upgrade.engines.base import Container, Images
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.restore import nudge, timens
from upgrade.restore.arrival import summarize
from upgrade.restore.frames import FrameMount
from upgrade.restore.ledger import Back, Begun, Ledger
from upgrade.restore.ondemand import PageService
from upgrade.session import Dumped, Session

MOST_STARTS = 3
"""The last start that systemd makes (``StartLimitBurst=``); what two could not restore is started from cold."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a container; when it ran again (TSC)."""

    dumped: Dumped
    outcome: str  # restored, cold-started, lost
    reason: str | None
    running_at: int
    lazy: bool = False
    """Its memory came, or still comes, on demand."""


class Restorer:
    """Brings one session's containers back."""

    def __init__(
        self,
        host: Host,
        clock: Clock,
        session: Session,
        ledger: Ledger,
        network_ready: Callable[[], None],
        frames: FrameMount | None = None,
        pages: PageService | None = None,
    ) -> None:
        self.host = host
        self.clock = clock
        self.session = session
        self.ledger = ledger
        self.network_ready = network_ready
        self.frames = frames
        self.pages = pages
        self.other_criu = ""

    def restore_all(self, early_done: Callable[[], object] = bool) -> list[Restored]:
        """Restore what is not back yet; no failure of one container keeps another from being restored.

        :param early_done: called when all are back that need nothing of the rest of the boot
        """
        self.other_criu = self._other_criu()
        containers = self.session.containers
        found = {number: of(containers[number], back) for number, back in self.ledger.back.items()}

        for name in {each.container.engine for each in containers}:
            expected = [d.container for n, d in enumerate(containers) if n not in found]
            self._expect(name, [each for each in expected if each.engine == name])

        def bring_back(number: int) -> None:
            found[number] = self._bring_back(number)

        threads = {n: Thread(target=bring_back, args=(n,)) for n in range(len(containers)) if n not in found}
        for thread in threads.values():
            thread.start()
        late = {number for number in threads if is_late(self.host, containers[number])}
        for number in threads.keys() - late:
            threads[number].join()
        early_done()
        for number in late:
            threads[number].join()
        return [found[number] for number in sorted(found)]

    def _expect(self, name: str, containers: list[Container]) -> None:
        """Prepare an engine; where that fails the restores say what it means."""
        try:
            engine(self.host, name).expect(containers)
        except Exception as e:
            print(f"{name} is not prepared: {e}", file=sys.stderr, flush=True)

    def _other_criu(self) -> str:
        """Return another CRIU's version; images of one version are for that version only."""
        try:
            with Criu() as criu:
                version = str(criu.version())
        except Exception:
            return ""  # the restore itself will say what is wrong
        return "" if version == self.session.criu_version else version

    def _bring_back(self, number: int) -> Restored:
        dumped = self.session.containers[number]
        container = dumped.container
        locked = [bool(self.session.lock and (container.host_network or container.addresses))]

        def unlock() -> None:
            if number not in self.ledger.may_run:
                self.ledger.let_run(number)
            if locked[0]:
                try:
                    put_back(dumped)
                except OSError as e:
                    forgotten.append(f"its connections through the host may break: {e}")
                netlock.unlock(number, self.session.lock)
                locked[0] = False

        forgotten: list[str] = []
        lazy = [False]
        outcome, reason = "restored", self._restore(number, unlock, lazy, forgotten)
        if reason is not None:
            if self.pages is not None:
                reason = self._with_its_error(self.pages, dumped, reason, lazy[0])
            with suppress(OSError):
                self.ledger.let_run(number)
            outcome, reason = cold_start(self.host, dumped, reason)
        running_at = self.clock.tsc()
        try:
            unlock()
            nudge.peers(dumped.peers if outcome == "restored" else ())  # only now have all left repair mode
        except Exception as e:
            reason = f"{reason or 'restored'}; but its network stays locked until all are restored: {e}"
        if forgotten:
            reason = f"{reason or outcome}; {forgotten[0]}"
        if lazy[0] and self.pages is not None:
            self.pages.answers(dumped)
        back = Back(outcome, reason, running_at, lazy[0] and outcome == "restored")
        with suppress(OSError):
            self.ledger.end(number, back)
        return of(dumped, back)

    def _with_its_error(self, pages: PageService, dumped: Dumped, reason: str, lazy: bool) -> str:
        """Give up on a container's pages; return the reason with what the page server says."""
        error = pages.error(dumped) if lazy else None
        pages.leave(dumped)
        return f"{reason}; the page server: {error}" if error else reason

    def _restore(
        self, number: int, unlock: Callable[[], None], lazy: list[bool], forgotten: list[str]
    ) -> str | None:
        """Restore one container; return why it could not be, or None.

        :param lazy: gets whether it was on demand
        :param forgotten: gets what it lacks
        """
        dumped = self.session.containers[number]
        if self.ledger.starts >= MOST_STARTS:
            return f"the restore process died {self.ledger.starts - 1} times"
        if number in self.ledger.may_run:
            return "the restore process died while it restored it; it may have run already"
        if self.other_criu:
            return (
                f"its images are of CRIU {self.session.criu_version}, but CRIU {self.other_criu} is installed"
            )
        directory = paths.STORE / dumped.directory
        try:
            timens.undo(directory)
            damage = checksums.damage(directory, dict(dumped.checksums), os.cpu_count() or 1)
            if damage:
                return f"its images are damaged: {summarize(damage)}"
            if dumped.in_place and self.frames is not None:
                self.frames.wait()
                damage = self.frames.damage(number)
                if damage:
                    return f"its page frames are damaged: {summarize(damage)}"
            if dumped.container.host_network or dumped.container.addresses:
                self.network_ready()
            lazy[0] = self.pages is not None and self.pages.serves(dumped)
            limit_s = self.session.restore_timeout_seconds
            images = Images(directory, work_directory(dumped), limit_s, lazy[0])
            if self.session.clocks == "run":
                try:
                    timens.count(directory, self._away_ns(dumped))
                except OSError as e:  # the range may be full
                    forgotten.append(f"its monotonic clocks do not count the downtime: {e}")
            adapter = engine(self.host, dumped.container.engine)
            helpers = adapter.helpers(dumped.container)
            self.ledger.begin(number, Begun(lazy[0], limit_s, helpers))
            if not adapter.holds:
                self.ledger.let_run(number)
            adapter.restore(dumped.container, images, unlock)
        except Exception as e:  # whatever it was: the container has to run again
            return f"it cannot be restored: {e}"
        return None

    def _away_ns(self, dumped: Dumped) -> int:
        """Return for how long a container has stood still."""
        rate = frequency(self.session.ties[0], self.session.ties[-1])
        return rate.ns(self.clock.tsc() - dumped.frozen_at)


def put_back(dumped: Dumped) -> None:
    """Let the host translate a container's connections again."""
    if dumped.flows:
        from upgrade import conntrack

        conntrack.put_back(dumped.flows)


def of(dumped: Dumped, back: Back) -> Restored:
    """Return what became of a container with the container."""
    return Restored(dumped, back.outcome, back.reason, back.running_at, back.lazy)


def is_late(host: Host, dumped: Dumped) -> bool:
    """Tell whether a container can be restored only when the boot goes on."""
    with suppress(UpgradeError):
        return engine(host, dumped.container.engine).is_late(dumped.container)
    return False


def work_directory(dumped: Dumped) -> Path:
    """Return where CRIU writes its log and statistics of a restore; the range may be full."""
    work = paths.RUNTIME / f"restore-{dumped.directory}"
    work.mkdir(mode=0o700, exist_ok=True)
    return work


def cold_start(host: Host, dumped: Dumped, reason: str) -> tuple[str, str]:
    """Start a container afresh; return its outcome and the reason, with what failed on the way."""
    container = dumped.container
    try:
        adapter = engine(host, container.engine)
        adapter.clean_up(container)
        cgroup.thaw(host, container.cgroup)
        if adapter.cold_start(container):
            return "cold-started", reason
        return "lost", f"{reason}; no cold start command is configured for it (cold_start in config.toml)"
    except Exception as e:
        return "lost", f"{reason}; its cold start failed: {e}"
