# SPDX-License-Identifier: MIT
"""The upgrade up to the jump: every step has an undo, and the jump is the commit.

Containers run during planning, loading and quiescing. Downtime begins with the freeze.
"""

import os
import socket
import struct
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from memfs import checksums, pmem, store
from upgrade import cgroup, linux, netconf, netlock, paths, plan
from upgrade.config import Config
from upgrade.dump import pages, peers, sockets, threads
from upgrade.dump.dumper import Dumps
from upgrade.engines import Container, engine
from upgrade.errors import Refusal, UpgradeError
from upgrade.events import Events
from upgrade.host import Host
from upgrade.kexec import cmdline, filesystems, initrd, load, quiesce
from upgrade.plan import Plan
from upgrade.process import run
from upgrade.request import Request
from upgrade.session import FILE, JUMP_FILE, Dumped, Session
from upgrade.undo import Undo, uninterrupted

PMEM_TIMEOUT_S = 20
# New processes of the new kernel begin this far above the highest PID that has to stay free.
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
        events = self.events
        with self.undo, self._dumps():
            first_tie = events.clock.tie()
            with events.step("looking at the host"):
                the_plan = plan.make(self.host, self.request, self.config)
                run(["criu", "check"])  # also fills /run/criu.kdat, before the containers stand still
            for warning in the_plan.warnings:
                events.warn(warning)
            session = replace(self._session(the_plan), ties=(first_tie,))
            with events.step(f"loading {the_plan.kernel_to}"):
                self._load(the_plan, session)
            with events.step(f"preparing {the_plan.store}"):
                self._open_store(the_plan, session)
            if self.request.quiesce:
                with events.step("stopping the host's other services"):
                    self._quiesce(the_plan)
            with events.step("writing dirty pages back"):
                self._write_back()
            session = self._prepare_lock(session, the_plan.containers)
            for number, container in enumerate(the_plan.containers):
                self.dumps.prepare(engine(self.host, container.engine), container, self._images(number))
            with events.step("locking the network and freezing the containers"):
                session = self._freeze(session)
            with events.step("dumping"):
                session = self._dump(session)
            self._jump(session)

    @contextmanager
    def _dumps(self) -> Iterator[None]:
        """Abort the dumps on the way out; a second signal must not keep CRIU from rolling back."""
        try:
            yield
        finally:
            uninterrupted()
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
            containers=tuple(
                Dumped(container, directory=self._images(number).name)
                for number, container in enumerate(the_plan.containers)
            ),
            vdso=the_plan.vdso,
        )

    def _last_pid(self, containers: tuple[Container, ...]) -> int:
        """Return the PID above which the new kernel's userspace begins."""
        host_pids = [c for c in containers if c.host_pids]
        highest = max((pid for c in host_pids for pid in self._all_ids(c)), default=0)
        floor = highest + PID_DISTANCE
        pid_max = int(self.host.read("/proc/sys/kernel/pid_max"))
        if floor + PID_DISTANCE >= pid_max:
            raise Refusal(
                f"its highest PID {highest} leaves no room below pid_max ({pid_max}) for the new kernel's processes",
                subject=", ".join(c.name for c in host_pids),
                hint="raise kernel.pid_max with sysctl",
            )
        return floor

    def _all_ids(self, container: Container) -> list[int]:
        """Return the ids of all threads, and of the sessions and groups that still use one."""
        found = []
        for pid in cgroup.pids(self.host, container.cgroup):
            found += [int(thread) for thread in self.host.list(f"/proc/{pid}/task")]
        return found

    def _images(self, number: int) -> Path:
        return paths.STORE / f"container-{number}"

    def _load(self, the_plan: Plan, session: Session) -> None:
        pid_max = int(self.host.read("/proc/sys/kernel/pid_max"))
        first = initrd.segment(session.last_pid, pid_max, cmdline.old_rdinit(session.command_line_from))
        self.undo.push("unload")
        load.load(
            the_plan.kernel, initrd.append(the_plan.initrd.read_bytes(), first), session.command_line_to
        )

    def _open_store(self, the_plan: Plan, session: Session) -> None:
        for module in pmem.MODULES:
            run(["modprobe", module])
        try:
            device = pmem.wait(the_plan.store, PMEM_TIMEOUT_S)
            self.undo.push(
                "release",
                where=str(paths.STORE),
                start_bytes=the_plan.store.start_bytes,
                size_bytes=the_plan.store.size_bytes,
            )
            store.make(device)
            store.mount(device, paths.STORE)
        except (TimeoutError, store.StoreFailed) as e:
            raise UpgradeError(
                str(e), subject=str(the_plan.store), hint="see dmesg; ndctl list -Ni shows the namespaces"
            ) from e
        except store.ForeignData as e:
            self.undo.forget("release")
            raise Refusal(
                str(e),
                subject=str(the_plan.store),
                hint=f"if nobody needs it any more: wipefs --all {device}",
            ) from e
        paths.PLAN.parent.mkdir(parents=True, exist_ok=True)
        self.undo.push("remove_file", path=str(paths.PLAN))
        session.save(paths.PLAN)

    def _quiesce(self, the_plan: Plan) -> None:
        self.undo.push("resume", units=quiesce.active_units())
        quiesce.write_target(self.host, [c.cgroup for c in the_plan.containers])
        quiesce.isolate()

    def _write_back(self) -> None:
        left = quiesce.write_back(
            self.host, self.config.writeback_bytes, self.config.writeback_timeout_seconds
        )
        if left > self.config.writeback_bytes:
            self.events.warn(f"{left >> 20} MiB are still dirty; writing them back is downtime")

    def _prepare_lock(self, session: Session, containers: tuple[Container, ...]) -> Session:
        """Find out what has to be locked, while everything still runs."""
        ports = self._ports(containers)
        links = tuple(netconf.snapshot(self.host)) if any(ports.values()) else ()
        return replace(session, lock=netlock.ruleset(ports), links=links)

    def _ports(self, containers: Iterable[Container]) -> dict[int, tuple[int, ...]]:
        return {
            number: sockets.of_pids(cgroup.pids(self.host, c.cgroup)).ports if c.host_network else ()
            for number, c in enumerate(containers)
        }

    def _freeze(self, session: Session) -> Session:
        """Lock and freeze everything at once: here the downtime begins."""
        names = [dumped.container.cgroup for dumped in session.containers]
        self.undo.push("unlock")
        self.undo.push("thaw", cgroups=names)
        frozen_at = self.events.stamp("freeze")
        netlock.lock(session.lock)
        cgroup.freeze(self.host, names, self.config.freeze_timeout_seconds)
        frozen = tuple(self._count(dumped, frozen_at) for dumped in session.containers)
        lock = netlock.ruleset(self._ports(dumped.container for dumped in frozen))
        if lock != session.lock:  # sockets were opened or closed since; none can be any more
            netlock.lock(lock)
        self.events.stamp("frozen")
        return replace(session, containers=frozen, lock=lock)

    def _dump(self, session: Session) -> Session:
        self.dumps.start()
        self.dumps.wait_until_held()
        self.events.stamp("dumped")
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            captured = tuple(pool.map(self._capture, session.containers))
        self.events.stamp("captured")
        return replace(session, containers=captured)

    def _count(self, dumped: Dumped, frozen_at: int) -> Dumped:
        name = dumped.container.cgroup
        caught = threads.leave_vdso(self.host, name, self.config.freeze_timeout_seconds)
        pids = cgroup.pids(self.host, name)
        return replace(
            dumped,
            tasks=len(pids),
            threads=threads.count(self.host, pids),
            threads_in_vdso=caught.first,
            vdso_action=caught.action,
            frozen_at=frozen_at,
        )

    def _capture(self, dumped: Dumped) -> Dumped:
        directory = paths.STORE / dumped.directory
        counted = pages.count(directory)
        return replace(
            dumped,
            pages_total=counted.total,
            pages_copied=counted.copied,
            bytes_copied=counted.copied_bytes,
            peers=peers.of_images(directory) if self.config.nudge and dumped.container.host_network else (),
            checksums=checksums.of_tree(directory, os.cpu_count() or 1),
        )

    def _jump(self, session: Session) -> None:
        events = self.events
        jump = os.open(paths.STORE / JUMP_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(jump, bytes(8))
        with events.step("freezing the file systems"):
            for mount in filesystems.writable(self.host, [paths.STORE]):
                self.undo.push("thaw_filesystem", where=mount.where)
                if not filesystems.freeze(mount):
                    events.warn(f"{mount.where} ({mount.kind}) cannot be frozen; it was only synced")
        events.stamp("quiesced")
        events.say(f"jumping into {session.kernel_to}")
        complete = replace(
            session,
            stamps=dict(events.stamps),
            ties=(*session.ties, events.clock.tie()),
            warnings=tuple(events.warnings),
        )
        complete.save(paths.STORE / FILE)
        linux.sync_filesystem(str(paths.STORE))
        os.pwrite(jump, struct.pack("<Q", events.clock.tsc()), 0)
        try:
            linux.reboot_kexec()
        except OSError as e:
            raise UpgradeError(f"the kernel did not jump: {e}", subject=session.kernel_to) from e
