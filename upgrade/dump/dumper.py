# SPDX-License-Identifier: MIT
"""Dumping all containers in parallel and holding them.

CRIU asks for an answer to ``post-dump`` when all images are complete and the tasks are still stopped. Nobody answers
until every container has got there: the jump is the commit; a failure answer is the abort, after which CRIU itself
rolls back and the tasks run on.
"""

import os
import threading
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from upgrade import cgroup
from upgrade.config import Config
from upgrade.criu import Criu, CriuError, log_errors, messages
from upgrade.dump import frames
from upgrade.dump.parent import Parent
from upgrade.engines.base import Container, Engine, Images
from upgrade.errors import UpgradeError
from upgrade.host import Host

LOG = "dump.log"
# A task has one file of pages; objects of shared memory have others.
LINKS_PER_TASK = 4
LOG_LEVEL = 2  # criu/include/log.h, LOG_WARN: what is logged at more costs downtime


class Dump(threading.Thread):
    """One container's dump. Its CRIU is started here, long before the freeze."""

    def __init__(
        self, engine: Engine, container: Container, images: Images, parent: Parent | None = None
    ) -> None:
        super().__init__(name=f"dump {container.name}", daemon=True)
        self.engine = engine
        self.container = container
        self.images = images
        self.parent = parent
        self.criu = Criu(apart=True)
        self.arrived = threading.Event()  # held, or failed
        self.answer = threading.Event()
        self.error: Exception | None = None
        self.held = False
        self.began_ns = 0
        self.ended_ns = 0
        """Between both (of the monotonic clock) the tasks stand still, and not longer than that."""

    def run(self) -> None:
        """Dump; ends only after :attr:`answer` was set or the dump has failed."""
        descriptors: list[int] = []
        try:
            with self.criu:
                self.criu.dump(self._options(descriptors), self._notify)
            if not self.held:
                self.error = self._explain(UpgradeError("it ended without being held"))
        except Exception as e:
            if not self.held:
                self.error = self._explain(e)
        finally:
            self.ended_ns = time.monotonic_ns()
            self.held = False
            for descriptor in descriptors:
                os.close(descriptor)
            self.arrived.set()

    def _options(self, descriptors: list[int]) -> Any:
        rpc = messages()
        for directory in (self.images.directory, self.images.work):
            descriptors.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
        options = rpc.criu_opts(
            images_dir_fd=descriptors[0],
            work_dir_fd=descriptors[1],
            pid=self.container.root_pid,
            log_level=LOG_LEVEL,
            log_file=LOG,
            notify_scripts=True,
            tcp_established=True,
            manage_cgroups=True,
            manage_cgroups_mode=rpc.SOFT,
            freeze_cgroup=cgroup.path(self.container.cgroup),
            network_lock=rpc.SKIP,
        )
        self.engine.dump_options(self.container, options)
        if self.parent is not None:
            self.parent.options(options)
        return options

    def _notify(self, script: str, _pid: int) -> bool:
        if script == "post-dump":
            if self.parent is not None:
                self.parent.dissolve()
            self.held = True
            self.arrived.set()
            self.answer.wait()
            return False
        if script == "pre-dump":
            self.began_ns = time.monotonic_ns()
        return True

    def _explain(self, error: Exception) -> UpgradeError:
        lines = log_errors(self.images.work / LOG)
        reason = "; ".join(lines) or str(error)
        return UpgradeError(
            f"CRIU cannot dump it: {reason}",
            subject=self.container.name,
            hint="stop what it uses that CRIU does not know (see the reason), or leave it out",
        )


class Dumps:
    """All dumps of a run."""

    def __init__(self, host: Host, config: Config) -> None:
        self.host = host
        self.config = config
        self.dumps: list[Dump] = []

    def prepare(self, engine: Engine, container: Container, directory: Path, *, in_place: bool) -> Images:
        """Start a container's CRIU and make room for its images.

        :param in_place: have the pages written to nowhere, because their frames stay where they are
        """
        images = Images(directory, directory)
        directory.mkdir(mode=0o700)
        parent = None
        if in_place:
            parent = Parent(self.host, directory) if self.tracks_memory else None
            frames.prepare(directory, LINKS_PER_TASK * len(cgroup.pids(self.host, container.cgroup)))
        engine.prepare_images(container, images)
        self.dumps.append(Dump(engine, container, images, parent))
        return images

    @cached_property
    def tracks_memory(self) -> bool:
        """Tell whether CRIU can leave out what did not change."""
        try:
            with Criu() as criu:
                return criu.tracks_memory()
        except CriuError:  # if there is more to it than this, the dump says what
            return False

    def watch(self) -> None:
        """Have the kernel note which pages change from now on; only these go through CRIU's pipes."""
        for dump in self.dumps:
            if dump.parent is not None:
                dump.parent.make(dump.container.root_pid, cgroup.pids(self.host, dump.container.cgroup))

    def start(self) -> None:
        """Begin to dump everything."""
        for dump in self.dumps:
            dump.start()

    def wait_until_held(self) -> None:
        """Return when every container is held.

        :raises UpgradeError: the first failure, naming its container; or that it took too long
        """
        deadline = time.monotonic() + self.config.dump_timeout_seconds
        while not all(dump.arrived.is_set() for dump in self.dumps):
            failed = next((dump.error for dump in self.dumps if dump.error is not None), None)
            if failed is not None:
                raise failed
            late = [dump.container.name for dump in self.dumps if not dump.arrived.is_set()]
            if time.monotonic() > deadline:
                raise UpgradeError(
                    f"the dump took longer than {self.config.dump_timeout_seconds} s",
                    subject=", ".join(late),
                    hint="raise dump_timeout_seconds in /etc/seamless-upgrade/config.toml",
                )
            next(dump for dump in self.dumps if not dump.arrived.is_set()).arrived.wait(0.02)
        for dump in self.dumps:
            if dump.error is not None:
                raise dump.error

    def still_held(self) -> bool:
        """Tell whether every CRIU still holds its container; one that died let its tasks go."""
        return all(dump.held and dump.criu.process.poll() is None for dump in self.dumps)

    def abort(self) -> None:
        """Answer failure to every CRIU and wait until all have rolled back."""
        for dump in self.dumps:
            dump.answer.set()
        for dump in self.dumps:
            if dump.is_alive():
                dump.join()
            elif dump.criu.process.poll() is None:  # never started
                with dump.criu:
                    pass
