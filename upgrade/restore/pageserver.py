# SPDX-License-Identifier: MIT
"""The page server of the restore on demand: CRIU's ``--lazy-pages``, answered straight from the frames.

Faults are answered first, several threads bring the rest meanwhile. The pages come out of ``pages-N.img``, whose
blocks are the frames.

It may be killed at any moment and started anew: its descriptors are in the FD store of its unit, what the tasks did
to their memory is in the :mod:`journals <upgrade.restore.journal>`, and the rest the kernel or the images know.
Names in the store: ``listen.N`` and ``criu.N`` of the Nth container, ``task.N.PID`` of its tasks, ``task.N.PID.SLOT``
of the child whose fork is message SLOT in its parent's journal, and so on. What it had no time to store its
:mod:`keeper <upgrade.restore.keeper>` does.
"""

import json
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Condition, Lock, Thread, stack_size

from upgrade.criu import pagemap_messages
from upgrade.errors import UpgradeError
from upgrade.restore import fdstore
from upgrade.restore.criuline import CriuLine, address
from upgrade.restore.journal import Journal, events_file, kept_messages
from upgrade.restore.keeper import Keeper
from upgrade.restore.lazy import Layout, Pagemap, read_pagemap
from upgrade.restore.lazytask import WINDOW_PAGES, Task
from upgrade.restore.ondemand import ANSWERS, PROGRESS
from upgrade.restore.orphans import adopt
from upgrade.restore.pagesfile import PagesFile
from upgrade.restore.pull import Pull
from upgrade.restore.served import Container, Progress
from upgrade.userfaultfd import PAGE_BYTES

MOST_THREADS = 4
PROGRESS_MS = 250
SOON_MS = 10
GRACE_NS = 2_000_000_000
"""So long the background waits for the word that a container answers: its processors belong to that first."""
STACK_BYTES = 512 << 10
SWITCH_S = 0.000_2
"""How long a thread of the background may keep the interpreter while a fault waits; Python's own value is 5 ms."""


def main(description: Path) -> int:
    """Serve the containers of a description until all their pages are where they belong.

    Progress is in ``pages-progress.json`` beside it; ``finished_at`` is in nanoseconds of CLOCK_MONOTONIC.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # to stop early would be to lose memory
    stack_size(STACK_BYTES)
    sys.setswitchinterval(SWITCH_S)
    with suppress(UpgradeError):  # if it cannot be loaded, that is told when it is needed
        pagemap_messages()  # now, and not while a task waits for it
    server = Server(description)
    server.start(fdstore.inherited())
    server.run()
    return 0


class Server:
    """All containers, and the threads."""

    def __init__(self, description: Path) -> None:
        self.containers = [
            Container(number, entry["name"], Path(entry["images"]), Path(entry["work"]))
            for number, entry in enumerate(json.loads(description.read_text())["containers"])
        ]
        self.journals = description.with_suffix(".d")
        self.journals.mkdir(mode=0o700, exist_ok=True)
        self.progress = Progress(description.with_name(PROGRESS))
        self.lines: list[CriuLine] = []
        self.adopted: dict[str, str] = {}
        self.keeper: Keeper | None = None
        self.lock = Lock()
        self.work = Condition(self.lock)
        self.pulls: deque[Pull] = deque()
        self.pulling: dict[str, Pull] = {}
        self.dumps: dict[tuple[int, int], tuple[Pagemap, PagesFile | None]] = {}
        self.problem: BaseException | None = None
        self.alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # Starting

    def start(self, inherited: dict[str, int]) -> None:
        """Go on with what an earlier server left, or begin; tells systemd when CRIU may come."""
        if inherited:
            self.progress.recall(self.containers)
        lines = {address(container): f"criu.{container.number}" for container in self.containers}
        self.adopted, lost = adopt(self.journals, lines, inherited)
        for child in lost:
            self.containers[int(child.split(".")[1])].error = f"memory of a child was lost ({child})"
        self.lines = [CriuLine(c, inherited, self._welcome, self._restored) for c in self.containers]
        try:
            self.keeper = Keeper()  # before the first thread, and before anything is read
        except OSError as e:  # without it only a death at the wrong moment takes something along
            sys.stderr.write(f"page server: {e}\n")
        for name, fd in inherited.items():
            self._adopt(name, fd)
        for _ in range(min(MOST_THREADS, os.cpu_count() or 1)):
            self._thread(self._pull)
        fdstore.ready(f"{len(self.containers)} containers")

    def _adopt(self, name: str, fd: int) -> None:
        """Go on with a task of an earlier server."""
        _, number, pid, *slots = name.split(".")
        container = self.containers[int(number)]
        pagemap, source = self._dump(container, int(pid))
        layout = Layout(pagemap.lazy)
        ancestor = f"task.{number}.{pid}"
        for slot in slots:
            for message in kept_messages(events_file(self.journals, ancestor))[: int(slot)]:
                layout.apply(message)
            ancestor += f".{slot}"
        self._add(container, name, fd, layout, source, pagemap)

    # CRIU

    def run(self) -> None:
        """Listen to CRIU until all containers are complete.

        :raises Exception: what a thread failed with; a server started anew may do better
        """
        while True:
            poll = select.poll()
            poll.register(self.alarm, select.POLLIN)
            waiting = {fd: line for line in self.lines if (fd := line.fileno()) is not None}
            for fd in waiting:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(SOON_MS if self._waiting() else PROGRESS_MS):
                if fd in waiting:
                    waiting[fd].hear()
                else:
                    os.eventfd_read(self.alarm)
            if self.problem is not None:
                raise self.problem
            complete = all(container.complete for container in self.containers)
            with self.work:
                told = [container.to_json() for container in self.containers]
            self.progress.tell(told)
            if complete:
                break
        for path in self.journals.iterdir():
            path.unlink()
        self.journals.rmdir()
        if self.keeper is not None:
            self.keeper.dismiss()

    def _welcome(self, container: Container, pid: int, fds: list[int]) -> bool:
        name = f"task.{container.number}.{pid}"
        if name in container.tasks:  # the server before us died in this very place
            return True
        fdstore.store(name, fds[0])
        try:
            pagemap, source = self._dump(container, pid)
        except (OSError, UpgradeError) as e:
            container.error = str(e)
            return False
        self._add(container, name, fds.pop(0), Layout(pagemap.lazy), source, pagemap)
        return True

    def _restored(self, container: Container) -> None:
        """CRIU has finished: everything may be brought as soon as the container answers."""
        with self.work:
            container.restored = True
            container.restored_ns = time.monotonic_ns()
        self._note_complete(container)

    def _waiting(self) -> bool:
        """Start the background for the containers that answer; tell whether there are others that will soon."""
        waiting = False
        for container in self.containers:
            if container.restored and not container.answers:
                late = time.monotonic_ns() - container.restored_ns > GRACE_NS
                if late or (container.work / ANSWERS).exists():
                    with self.work:
                        container.answers = True
                        self.work.notify_all()
                else:
                    waiting = True
        return waiting

    # Tasks

    def _dump(self, container: Container, pid: int) -> tuple[Pagemap, PagesFile | None]:
        """Return a task's pagemap and the file of its pages."""
        key = (container.number, pid)
        if key not in self.dumps:
            path = container.images / f"pagemap-{pid}.img"
            pagemap = read_pagemap(path)
            source = None
            if pagemap.lazy:
                file = container.images / pagemap.pages_file
                source = PagesFile(file)
                if source.size_bytes < pagemap.pages * PAGE_BYTES:
                    raise UpgradeError(
                        f"{source.size_bytes} bytes, but {pagemap.pages} pages are to be there",
                        subject=str(file),
                    )
            self.dumps[key] = (pagemap, source)
        return self.dumps[key]

    def _add(
        self,
        container: Container,
        name: str,
        fd: int,
        layout: Layout,
        source: PagesFile | None,
        pagemap: Pagemap,
    ) -> Task:
        journal = Journal(self.journals, name, -(-pagemap.pages // WINDOW_PAGES))
        for message in journal.messages():
            layout.apply(message)

        def forked(parent: Task, child: int, slot: int) -> None:
            self._forked(container, pagemap, parent, child, slot)

        pages = pagemap.pages if pagemap.lazy else 0
        task = Task(name, fd, layout, source, pages, journal, forked)
        with self.work:
            container.tasks[name] = task
            container.total_pages += pagemap.lazy_pages
            pull = Pull(container, task, pagemap.lazy_pages)
            self.pulls.append(pull)
            self.pulling[name] = pull
            self.work.notify_all()
        self._thread(lambda: self._serve(container, task))
        return task

    def _forked(self, container: Container, pagemap: Pagemap, parent: Task, fd: int, slot: int) -> None:
        """Take over the child of a fork; its parent's gate is held, so nothing moves meanwhile."""
        name = f"{parent.name}.{slot}"
        fdstore.store(name, fd)
        journal = Journal(self.journals, name, -(-pagemap.pages // WINDOW_PAGES))
        # What its parent had, it has.
        journal.done[:] = parent.journal.done[:]
        journal.close()
        self._add(container, name, fd, parent.layout.copy(), parent.source, pagemap)

    def _serve(self, container: Container, task: Task) -> None:
        task.serve()
        with task.gate.alone():
            # From here on a page that is missing is a page of zeroes, and rightly so.
            fdstore.remove(self.adopted.get(task.name, task.name))
            os.close(task.fd)
            os.close(task.finished)
            task.journal.close()
        with self.work:
            container.faults += task.faults
            if task.unreadable:
                container.error = f"{task.unreadable} pages could not be read ({task.name})"
            del container.tasks[task.name]
        self._note_complete(container)

    def _note_complete(self, container: Container) -> None:
        with self.work:
            if container.complete and container.finished_ns is None:
                container.finished_ns = time.monotonic_ns()
        os.eventfd_write(self.alarm, 1)

    # The background

    def _pull(self) -> None:
        while True:
            with self.work:
                while (claim := self._claim()) is None:
                    self.work.wait()
                pull, chunk = claim
            if chunk is not None:
                pull.task.pull(chunk)
            with self.work:
                pull.ended(chunk)
                if not pull.is_done():
                    continue
                del self.pulling[pull.task.name]
            pull.task.finish()

    def _claim(self) -> "tuple[Pull, int | None] | None":
        """Take a chunk of the task whose turn it is; ``None`` for the chunk if it had none left from the start."""
        for _ in range(len(self.pulls)):
            pull = self.pulls.popleft()
            if not pull.container.answers:
                self.pulls.append(pull)
                continue
            chunk = pull.claim()
            if not pull.exhausted():
                self.pulls.append(pull)
            return pull, chunk
        return None

    # The rest

    def _thread(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as e:  # the server ends, and is started anew
                self.problem = e
                os.eventfd_write(self.alarm, 1)

        Thread(target=guarded, daemon=True).start()
