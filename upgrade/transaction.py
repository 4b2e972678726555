# SPDX-License-Identifier: MIT
"""The upgrade up to the jump: every step has an undo, and the jump is the commit.

Here is what happens while the containers still run; ``standstill.py`` has the rest.
"""

import errno
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memfs import pmem, store, swap
from memfs.ranges import Range
from upgrade import budget, cgroup, movers, netconf, paths, plan
from upgrade.check import catalog, runner
from upgrade.check.situation import Situation
from upgrade.config import Config
from upgrade.dump.dumper import Dumps
from upgrade.engines import Container, engine
from upgrade.errors import Refusal, UpgradeError
from upgrade.events import Events
from upgrade.host import Host
from upgrade.kexec import cmdline, initrd, load, quiesce
from upgrade.pagemaps import PAGE_BYTES
from upgrade.plan import Plan
from upgrade.process import run
from upgrade.request import Request
from upgrade.services import dropin, systemd
from upgrade.session import Dumped, Session
from upgrade.standstill import Standstill
from upgrade.undo import Undo, uninterrupted

PMEM_TIMEOUT_S = 20
# New processes of the new kernel begin this far above the highest number that has to stay free.
PID_DISTANCE = 100


class Transaction:
    """One upgrade of this host."""

    def __init__(self, host: Host, request: Request, config: Config, events: Events) -> None:
        self.host = host
        self.request = request
        self.config = config
        self.events = events
        self.undo = Undo(host, paths.UNDO)
        self.dumps = Dumps(host, config)

    def run(self) -> None:
        """Upgrade. Returns never: either the new kernel runs, or an exception says what was rolled back."""
        step = self.events.step
        with self.undo, self._dumps():
            first_tie = self.events.clock.tie()
            with step("looking at the host"):
                the_plan = self._look()
                run(["criu", "check"])  # also fills /run/criu.kdat, before the containers stand still
            for warning in the_plan.warnings:
                self.events.warn(warning)
            session = replace(self._session(the_plan), ties=(first_tie,))
            with step(f"loading {the_plan.kernel_to}"):
                self._load(the_plan, session)
            device = self._device(the_plan.store)
            if the_plan.frames:
                self._quiet_movers()  # else what is gathered moves again
            if the_plan.frames and self.request.gather:
                session = replace(session, gathering=self._gather(the_plan, device))
            with step(f"preparing {the_plan.store}"):
                self._open_store(the_plan, session, device)
            if self.request.cold:
                with step(f"stopping the containers of {', '.join(self.request.cold)}"):
                    self._stop_cold(session)
            if self.request.quiesce:
                with step("stopping the host's other services"):
                    self._quiesce(the_plan)
            with step("writing dirty pages back"):
                self._write_back()
            if the_plan.frames and self.request.gather:
                self._make_room(the_plan)
            self._quiet_watchdogs(the_plan)
            standstill = Standstill(self.host, self.config, self.events, self.undo, self.dumps)
            standstill.jump(session, the_plan.frames)

    def _look(self) -> Plan:
        """Return the plan, once nothing stands against it."""
        # not kept: it holds a whole kernel afterwards
        situation = Situation(self.host, self.request, self.config)
        the_plan = plan.make(self.host, self.request, self.config, lambda: situation.comparison)
        # What CRIU refuses would cost a freeze. The rest takes an emulated machine half a minute: check asks it, and
        # run without --yes.
        checks = [each for each in runner.chosen(catalog.checks(), (), self.request.skip) if each.in_run]
        runner.refuse(runner.run([each for each in checks if each.family == "containers"], situation))
        return the_plan

    @contextmanager
    def _dumps(self) -> Iterator[None]:
        """Abort the dumps on the way out; a second signal must not keep CRIU from rolling back."""
        try:
            yield
        finally:
            uninterrupted()
            try:
                self.undo.unwind(only={"thaw_filesystem"})  # CRIU's rollback may have to write
            finally:
                self.dumps.abort()

    def _session(self, the_plan: Plan) -> Session:
        running = self.host.command_line()
        identity = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
        return Session(
            id=identity,
            host=socket.gethostname(),
            kernel_from=self.host.release(),
            kernel_to=the_plan.kernel_to,
            command_line_from=running,
            command_line_to=cmdline.build(running, self.request.append, identity),
            boot_id=self.host.read("/proc/sys/kernel/random/boot_id"),
            criu_version=str(the_plan.criu_version),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            taint_before=int(self.host.read("/proc/sys/kernel/tainted")),
            livepatches_before=tuple(self.host.list("/sys/kernel/livepatch")),
            store_start_bytes=the_plan.store.start_bytes,
            store_size_bytes=the_plan.store.size_bytes,
            last_pid=self._last_pid(the_plan.containers),
            links=tuple(netconf.snapshot(self.host))
            if any(c.host_network or c.addresses for c in the_plan.containers)
            else (),
            containers=tuple(
                Dumped(container, directory=f"container-{number}")
                for number, container in enumerate(the_plan.containers)
            ),
            restore_timeout_seconds=self.config.restore_timeout_seconds,
            vdso=the_plan.vdso,
            restore=self.request.restore,
            verify=self.request.verify,
            clocks=self.request.clocks or self.config.clocks,
        )

    def _last_pid(self, containers: tuple[Container, ...]) -> int:
        """Return the PID above which the new kernel's userspace begins."""
        in_host = [c for c in containers if c.host_pids]
        highest = max((number for c in in_host for number in cgroup.ids(self.host, c.cgroup)), default=0)
        floor = highest + PID_DISTANCE
        pid_max = int(self.host.read("/proc/sys/kernel/pid_max"))
        if floor + PID_DISTANCE >= pid_max:
            raise Refusal(
                f"its highest PID {highest} leaves no room for the new kernel's processes (pid_max is {pid_max})",
                subject=", ".join(c.name for c in in_host),
                hint="raise kernel.pid_max with sysctl",
            )
        return floor

    def _load(self, the_plan: Plan, session: Session) -> None:
        pid_max = int(self.host.read("/proc/sys/kernel/pid_max"))
        first = initrd.segment(session.last_pid, pid_max, cmdline.old_rdinit(session.command_line_from))
        self.undo.push("unload")
        load.load(
            the_plan.kernel, initrd.append(the_plan.initrd.read_bytes(), first), session.command_line_to
        )

    def _device(self, span: Range) -> Path:
        run(["modprobe", "--all", *pmem.MODULES])
        try:
            return pmem.wait(span, PMEM_TIMEOUT_S)
        except TimeoutError as e:
            hint = "see dmesg; ndctl list -Ni shows the namespaces"
            raise UpgradeError(str(e), subject=str(span), hint=hint) from e

    def _gather(self, the_plan: Plan, device: Path) -> dict[str, Any]:
        """Move the containers' pages into the ranges for frames; what cannot be moved is copied later."""
        from upgrade.dump import gathering

        try:
            found = gathering.survey(self.host, the_plan.containers, the_plan.frames)
        except OSError as e:
            if e.errno != errno.ENOTTY:
                raise
            self.events.warn("pages are not moved to where they can stay: no PAGEMAP_SCAN (Linux 6.7)")
            return {}
        self.events.say(
            f"{100 * found.share_in_place:.1f} % of {found.total.pages * PAGE_BYTES >> 20} MiB lie where they can stay"
        )
        if not gathering.is_worth_it(found):
            return {}
        with self.events.step("moving the rest there, while the containers run"):
            gatherer = gathering.Gatherer(self.host, self.config, self.events, self.undo)
            try:
                done = gatherer.gather(the_plan.containers, the_plan.frames, device)
            except (store.ForeignData, swap.SwapFailed) as e:
                self.events.warn(f"pages were not moved into the ranges for frames: {e}")
                return {}
        self.events.say(
            f"{(done.outside_before - done.outside_after) * PAGE_BYTES >> 20} MiB moved in "
            f"{done.duration_ns / 1e9:.1f} s, {done.outside_after} pages left to be copied"
        )
        for reason, pages in done.left.items():
            self.events.say(f"  {pages} pages: {reason}")
        return done.to_json()

    def _make_room(self, the_plan: Plan) -> None:
        """Have room for what cannot stay where it is."""
        from upgrade.dump import gathering

        try:
            left = gathering.make_room(self.host, the_plan.containers, the_plan.frames)
        except OSError as e:
            if e.errno != errno.ENOTTY:  # no PAGEMAP_SCAN
                raise
            return
        self.events.say(f"{left} pages lie where they cannot stay")

    def _open_store(self, the_plan: Plan, session: Session, device: Path) -> None:
        span = the_plan.store
        try:
            store.refuse_foreign(device)
            self.undo.push(
                "release",
                where=str(paths.STORE),
                start_bytes=span.start_bytes,
                size_bytes=span.size_bytes,
            )
            store.make(device)
            store.mount(device, paths.STORE)
            needed = int(the_plan.memory_bytes * (budget.FRAMES_SHARE if the_plan.frames else 1))
            if store.free_bytes(paths.STORE) < needed:
                raise Refusal(
                    f"has room for {store.free_bytes(paths.STORE) >> 20} MiB, the containers need "
                    f"{needed >> 20} MiB",
                    subject=str(span),
                    hint="make the range larger (memmap= on the command line), or preserve less",
                )
        except store.StoreFailed as e:
            hint = "see dmesg; ndctl list -Ni shows the namespaces"
            raise UpgradeError(str(e), subject=str(span), hint=hint) from e
        except store.ForeignData as e:
            hint = f"if nobody needs it any more: wipefs --all {device}"
            raise Refusal(str(e), subject=str(span), hint=hint) from e
        paths.PLAN.parent.mkdir(parents=True, exist_ok=True)
        self.undo.push("remove_file", path=str(paths.PLAN))
        session.save(paths.PLAN)
        self._spool_units(session)
        for dumped in session.containers:
            adapter = engine(self.host, dumped.container.engine)
            directory = paths.STORE / dumped.directory
            self.dumps.prepare(adapter, dumped.container, directory, in_place=bool(the_plan.frames))

    def _spool_units(self, session: Session) -> None:
        """Leave on disk what makes the new kernel's systemd restore services."""
        services = [found for d in session.containers if (found := d.container.service)]
        if services:
            self.undo.push("forget_units", session=session.id)
        for name, data in services:
            dropin.spool(self.host, session.id, name, data)

    def _stop_cold(self, session: Session) -> None:
        from upgrade.cold import record

        self.undo.push("start_cold", file=os.fspath(paths.COLD))
        stopped = record.stop(self.host, self.request.cold, session.id, paths.COLD)
        self.events.say(f"{len(stopped.containers)} stopped")

    def _quiesce(self, the_plan: Plan) -> None:
        self.undo.push("resume", units=quiesce.active_units())
        services = [found[0] for c in the_plan.containers if (found := c.service)]
        quiesce.write_target(self.host, [c.cgroup for c in the_plan.containers], services)
        quiesce.isolate()

    def _quiet_movers(self) -> None:
        before = movers.read(self.host)
        self.undo.push("movers", before=before)
        try:
            movers.quiet(self.host, before)
        except OSError as e:  # if a frame moves it is seen
            self.events.warn(f"not everything that moves page frames could be stopped: {e}")

    def _quiet_watchdogs(self, the_plan: Plan) -> None:
        """Keep systemd from ending services that cannot say in time that they live."""
        if any(found[1]["watchdog"] for c in the_plan.containers if (found := c.service)):
            self.undo.push("watchdogs")
            systemd.watchdogs(enabled=False)

    def _write_back(self) -> None:
        limit = self.config.writeback_bytes
        left = quiesce.write_back(self.host, limit, self.config.writeback_timeout_seconds)
        if left > limit:
            self.events.warn(f"{left >> 20} MiB are still dirty; writing them back is downtime")
