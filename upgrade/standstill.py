# SPDX-License-Identifier: MIT
"""From the freeze to the jump, while the containers stand still. Whatever is here is downtime."""

import os
import struct
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

from memfs import checksums
from memfs.ranges import Range
from upgrade import cgroup, conntrack, linux, netlock, paths
from upgrade.config import Config
from upgrade.dump import backlog, peers, sockets, threads, timers
from upgrade.dump.dumper import Dumps
from upgrade.dump.frames import Frames, Stopped
from upgrade.engines import Container, engine
from upgrade.engines.base import Images
from upgrade.errors import UpgradeError
from upgrade.events import Events
from upgrade.host import Host
from upgrade.kexec import filesystems, load
from upgrade.kexec.filesystems import Mount
from upgrade.session import FILE, FRAMES_FILE, JUMP_FILE, SAMPLES_FILE, Dumped, FrameRecord, Session
from upgrade.undo import Undo

# So often the frames are looked at again before the jump, if they move.
LOOKS = 5


class Standstill:
    """The frozen part of a transaction."""

    def __init__(self, host: Host, config: Config, events: Events, undo: Undo, dumps: Dumps) -> None:
        self.host = host
        self.config = config
        self.events = events
        self.undo = undo
        self.dumps = dumps

    def jump(self, session: Session, spans: tuple[Range, ...]) -> None:
        """Freeze, dump and jump; returns only by an exception.

        :param spans: the ranges in which page frames stay; none if pages are copied
        """
        with Frames(self.host, spans, paths.STORE / FRAMES_FILE) as frames:
            self._stand_still(session, frames)

    def _stand_still(self, session: Session, frames: Frames) -> None:
        peers.prepare()
        timers.prepare()
        freezable = filesystems.writable(self.host, [paths.STORE])
        remote = filesystems.remote(self.host)
        self.dumps.watch()
        with self.events.step("freezing the containers"):
            session = self._freeze(session)
        with self.events.step("dumping"):
            self.dumps.start()
            self.dumps.wait_until_held()
            self._freeze_again(session)
        self.events.stamp("dumped")
        freeze_disks = Limited(lambda stopped: self._quiesce_disks(freezable, remote, stopped))
        with self.events.step("capturing"), freeze_disks as disks:
            session = self._capture(session, frames)
            self.events.stamp("captured")
            disks.wait(self.config.filesystem_timeout_seconds, "a file system was not synced in time")
        self.events.stamp("quiesced")
        self.events.say(f"jumping into {session.kernel_to}")
        self._jump(session, frames)

    def _freeze(self, session: Session) -> Session:
        """Stop every task, then lock its sockets: what arrives in between waits in queues that are dumped."""
        names = [dumped.container.cgroup for dumped in session.containers]
        containers = [dumped.container for dumped in session.containers]
        self.undo.push("unlock")
        doors = backlog.Doors(self.host, containers)
        netlock.lock(netlock.door(doors.ports, {n: each.addresses for n, each in enumerate(containers)}))
        doors.wait()
        self.undo.push("thaw", cgroups=names)
        frozen_at = self.events.stamp("freeze")
        cgroup.freeze(self.host, names, self.config.freeze_timeout_seconds)
        doors.settle(self.config.freeze_timeout_seconds)
        if left := doors.drain():
            self.events.warn(
                f"{left} connections that a program had closed were not done: their peers lack the rest of what it sent"
            )
        frozen = tuple(self._look_at(dumped, frozen_at, session) for dumped in session.containers)
        addresses = {number: dumped.container.addresses for number, dumped in enumerate(frozen)}
        rules = netlock.ruleset(self._ports(frozen), addresses)
        netlock.lock(rules)
        self.events.stamp("frozen")
        return replace(session, containers=frozen, lock=rules)

    def _freeze_again(self, session: Session) -> None:
        """Keep the tasks stopped even if a CRIU dies: it thawed the cgroup once it had stopped them itself."""
        for dumped in session.containers:
            self.host.write(cgroup.path(dumped.container.cgroup, "cgroup.freeze"), "1")

    def _look_at(self, dumped: Dumped, frozen_at: int, session: Session) -> Dumped:
        name = dumped.container.cgroup
        caught = threads.leave_vdso(self.host, name, self.config.freeze_timeout_seconds)
        if caught.left and any(symbol["change"] != "same" for symbol in session.vdso["symbols"]):
            raise UpgradeError(
                f"{caught.left} threads are inside the vDSO, which the new kernel replaces by another",
                subject=dumped.container.name,
                hint="try again: it asks for the time without a pause",
            )
        pids = cgroup.pids(self.host, name)
        return replace(
            dumped,
            tasks=len(pids),
            threads=threads.count(self.host, pids),
            threads_in_vdso=caught.first,
            vdso_action=caught.action,
            frozen_at=frozen_at,
        )

    def _ports(self, containers: Iterable[Dumped]) -> dict[int, tuple[int, ...]]:
        table = sockets.table(self.host)
        return {
            number: sockets.ports(
                sockets.of_pids(self.host, cgroup.pids(self.host, d.container.cgroup), table)
            )
            if d.container.host_network
            else d.container.published
            for number, d in enumerate(containers)
        }

    def _quiesce_disks(self, freezable: list[Mount], remote: list[Mount], stopped: threading.Event) -> None:
        for mount in remote:
            linux.sync_filesystem(mount.where)
        for mount in freezable:
            if stopped.is_set():
                return
            self.undo.push("thaw_filesystem", where=mount.where)
            frozen = filesystems.freeze(mount)
            if stopped.is_set():  # nobody else will thaw it: what was frozen by then has been undone
                filesystems.thaw(mount.where)
            elif not frozen:
                self.undo.forget("thaw_filesystem")
                self.events.warn(f"{mount.where} ({mount.kind}) cannot be frozen; it was only synced")

    def _capture(self, session: Session, frames: Frames) -> Session:
        if frames.spans:
            session = self._keep_frames(session, frames)
        with ThreadPoolExecutor(max_workers=len(session.containers)) as pool:
            return replace(session, containers=tuple(pool.map(self._capture_one, session.containers)))

    def _keep_frames(self, session: Session, frames: Frames) -> Session:
        kept = frames.capture(
            Stopped(
                dumped.container.name,
                number,
                paths.STORE / dumped.directory,
                dumped.container.root_pid,
                cgroup.pids(self.host, dumped.container.cgroup),
            )
            for number, dumped in enumerate(session.containers)
        )
        for number, dumped in enumerate(session.containers):
            if not kept[number].in_place:
                self.events.warn(
                    f"{dumped.container.name}: too many of its pages lay elsewhere, all were copied"
                )
        frames.sample(paths.STORE / SAMPLES_FILE, everything=session.verify == "frames")
        containers = tuple(
            replace(
                dumped,
                in_place=kept[number].in_place,
                pages=kept[number].pages,
                shared_pages=kept[number].shared,
                stragglers=kept[number].stragglers,
                frame_files=kept[number].files,
            )
            for number, dumped in enumerate(session.containers)
        )
        return replace(session, containers=containers)

    def _capture_one(self, dumped: Dumped) -> Dumped:
        directory = paths.STORE / dumped.directory
        engine(self.host, dumped.container.engine).capture(dumped.container, Images(directory, directory))
        timers.mend(directory)
        flows = self._flows(dumped.container)
        found = peers.of_images(directory) if self.config.nudge else ()
        return replace(
            dumped,
            peers=found if dumped.container.host_network else conntrack.from_outside(found, flows),
            flows=flows,
            checksums=checksums.of_tree(directory, os.cpu_count() or 1),
        )

    def _flows(self, container: Container) -> tuple[conntrack.Flow, ...]:
        try:
            return conntrack.of(container.addresses)
        except OSError as e:
            self.events.warn(f"{container.name}: connections through the host may break: {e}")
            return ()

    def _jump(self, session: Session, frames: Frames) -> None:
        with (paths.STORE / JUMP_FILE).open("wb", buffering=0) as file:
            file.write(bytes(8))
            self._enter(session, frames, file.fileno())

    def _enter(self, session: Session, frames: Frames, jump: int) -> None:
        """Look at the frames for the last time and enter the new kernel.

        :param jump: a descriptor of the file that the moment is written to
        """
        for _ in range(LOOKS):
            self._record(session, frames)
            if not frames.moved():
                break
        else:
            raise UpgradeError(
                f"page frames moved in each of {LOOKS} looks",
                hint="find out what moves them (compaction, NUMA balancing, KSM), or copy: --pages copy",
            )
        if not self.dumps.still_held():
            raise UpgradeError(
                "a CRIU ended while it held its container", hint="see the kernel's log: out of memory?"
            )
        if not load.is_loaded(self.host):
            raise UpgradeError("somebody unloaded the new kernel", subject=session.kernel_to)
        # The last look is behind us: nothing that could wait or fail comes before the jump.
        os.pwrite(jump, struct.pack("<Q", self.events.clock.tsc()), 0)
        try:
            linux.reboot_kexec()
        except OSError as e:
            raise UpgradeError(f"the kernel did not jump: {e}", subject=session.kernel_to) from e

    def _record(self, session: Session, frames: Frames) -> None:
        """Write down everything that the new kernel has to know."""
        record = None
        if frames.spans:
            record = FrameRecord(
                frames.spans,
                checksums.of_file(paths.STORE / FRAMES_FILE),
                checksums.of_file(paths.STORE / SAMPLES_FILE),
            )
        complete = replace(
            session,
            stamps=dict(self.events.stamps),
            ties=(*session.ties, self.events.clock.tie()),
            warnings=tuple(self.events.warnings),
            frames=record,
        )
        complete.save(paths.STORE / FILE)
        linux.sync_filesystem(str(paths.STORE))


class Limited(threading.Thread):
    """Work that may hang in the kernel, done beside a block; it is told when the block has failed."""

    def __init__(self, work: Callable[[threading.Event], None]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.error: Exception | None = None
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stopped.set()

    def run(self) -> None:
        """Do the work."""
        try:
            self.work(self.stopped)
        except Exception as e:
            self.error = e

    def wait(self, limit_s: float, otherwise: str) -> None:
        """Wait for the end of the work.

        :raises UpgradeError: with the text ``otherwise`` if it did not end within ``limit_s``; whatever it raised
        """
        self.join(limit_s)
        if self.is_alive():
            raise UpgradeError(otherwise, hint="raise filesystem_timeout_seconds, or leave out what hangs")
        if self.error is not None:
            raise UpgradeError(f"a file system cannot be synced: {self.error}") from self.error
