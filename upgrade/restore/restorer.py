# SPDX-License-Identifier: MIT
"""Restoring the containers in parallel; whatever cannot be restored is started from cold."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from memfs import checksums
from upgrade import cgroup, netlock, paths
from upgrade.clock import Clock
from upgrade.criu import Criu
from upgrade.engines import engine
from upgrade.engines.base import Images
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.restore import nudge
from upgrade.restore.arrival import summarize
from upgrade.session import Dumped, Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a container. Moments are TSC values."""

    dumped: Dumped
    outcome: str  # restored, cold-started, lost
    reason: str | None
    begun_at: int
    unlocked_at: int
    running_at: int


class Restorer:
    """Brings one session's containers back."""

    def __init__(self, host: Host, clock: Clock, session: Session, network_ready: Callable[[], None]) -> None:
        self.host = host
        self.clock = clock
        self.session = session
        self.network_ready = network_ready
        self.other_criu = ""

    def restore_all(self) -> list[Restored]:
        """Restore everything; no failure of one container keeps another from being restored."""
        self.other_criu = self._other_criu()
        with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1)) as pool:
            return list(pool.map(self._bring_back, range(len(self.session.containers))))

    def _other_criu(self) -> str:
        """Return another CRIU's version; images of one version are for that version only."""
        with Criu() as criu:
            version = str(criu.version())
        return "" if version == self.session.criu_version else version

    def _bring_back(self, number: int) -> Restored:
        dumped = self.session.containers[number]
        begun_at = self.clock.tsc()
        unlocked: list[int] = []

        def unlock() -> None:
            if not unlocked:
                if dumped.container.host_network and self.session.lock:
                    netlock.unlock(number)
                unlocked.append(self.clock.tsc())

        outcome, reason = "restored", self._restore_or_why_not(dumped, unlock)
        running_at = self.clock.tsc()
        if reason is None:
            unlock()
            nudge.peers(dumped.peers)  # only now have all sockets left repair mode
        else:
            log.error("%s: %s", dumped.container.name, reason)
            outcome, reason = cold_start(self.host, dumped, reason)
            running_at = self.clock.tsc()
            unlock()
        return Restored(dumped, outcome, reason, begun_at, unlocked[0], running_at)

    def _restore_or_why_not(self, dumped: Dumped, unlock: Callable[[], None]) -> str | None:
        try:
            return self._restore(dumped, unlock)
        except Exception as e:  # whatever it was: the container has to run again
            log.debug("%s", e, exc_info=True)
            return f"cannot be restored: {e}"

    def _restore(self, dumped: Dumped, unlock: Callable[[], None]) -> str | None:
        """Restore one container; return why it could not be, or None."""
        if self.other_criu:
            return (
                f"its images are of CRIU {self.session.criu_version}, but CRIU {self.other_criu} is installed"
            )
        directory = paths.STORE / dumped.directory
        damage = checksums.damage(directory, dict(dumped.checksums), os.cpu_count() or 1)
        if damage:
            return f"its images are damaged: {summarize(damage)}"
        if dumped.container.host_network:
            self.network_ready()
        engine(self.host, dumped.container.engine).restore(
            dumped.container, Images(directory, _work(directory)), unlock
        )
        return None


def _work(directory: Path) -> Path:
    work = directory / "restore"
    work.mkdir(exist_ok=True)
    return work


def cold_start(host: Host, dumped: Dumped, reason: str) -> tuple[str, str]:
    """Start a container afresh; return its outcome and the reason, with what failed on the way."""
    container = dumped.container
    adapter = engine(host, container.engine)
    try:
        adapter.clean_up(container)
        cgroup.thaw(host, container.cgroup)
        if adapter.cold_start(container):
            return "cold-started", reason
        return "lost", f"{reason}; no cold start command is configured for it (cold_start in config.toml)"
    except (OSError, UpgradeError) as e:
        return "lost", f"{reason}; its cold start failed: {e}"
