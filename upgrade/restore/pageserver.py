# SPDX-License-Identifier: MIT
"""The page server of the restore on demand: CRIU's ``--lazy-pages``, answered straight from the frames.

Faults are answered first, several threads bring the rest meanwhile. The pages come out of ``pages-N.img``, whose
blocks are the frames.

It may be killed at any moment and started anew: its descriptors are in the FD store of its unit, what the tasks did
to their memory is in the :mod:`journals <upgrade.restore.journal>`, and the rest the kernel or the images know.
Names in the store: ``listen.N`` and ``criu.N`` of the Nth container, ``task.N.PID`` of its tasks, ``task.N.PID.SLOT``
of the child whose fork is message SLOT in its parent's journal, and so on.

Protocol (criu/uffd.c of CRIU 4.2): a stream; of each task its process id as int32, negative if it is a zombie, and
otherwise one byte with the userfaultfd; at last, once per restore, RESTORE_FINISHED.
"""

import array
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Lock, Thread, stack_size
from typing import Any

from upgrade.criu import pagemap_messages
from upgrade.errors import UpgradeError
from upgrade.restore import fdstore
from upgrade.restore.journal import Journal, events_file, kept_messages
from upgrade.restore.lazy import Layout, Pagemap, read_pagemap
from upgrade.restore.lazytask import WINDOW_PAGES, Task
from upgrade.restore.ondemand import ANSWERS, PROGRESS, SOCKET
from upgrade.restore.pagesfile import PagesFile
from upgrade.userfaultfd import PAGE_BYTES, UFFD_EVENT_FORK

RESTORE_FINISHED = 0x52535446
MOST_THREADS = 4
PROGRESS_MS = 250
SOON_MS = 10
GRACE_NS = 2_000_000_000
"""So long the background waits for the word that a container answers: its processors belong to that first."""
STACK_BYTES = 512 << 10
SWITCH_S = 0.000_2
"""How long a thread of the background may keep the interpreter while a fault waits; Python's own value is 5 ms."""


@dataclass
class Container:
    """One container: where its dump is, and how far its restore has come."""

    number: int
    name: str
    images: Path
    work: Path
    listener: socket.socket | None = None
    line: socket.socket | None = None
    restored: bool = False
    """CRIU has finished."""
    restored_ns: int = 0
    answers: bool = False
    """The container runs: the rest of its memory may be brought now."""
    error: str | None = None
    tasks: dict[str, Task] = field(default_factory=dict)
    total_pages: int = 0
    done_pages: int = 0
    faults: int = 0
    finished_ns: int | None = None

    @property
    def complete(self) -> bool:
        """Tell whether nothing is left to do."""
        return self.restored and not self.tasks

    def to_json(self) -> dict[str, Any]:
        """Return what the progress file says."""
        return {
            "name": self.name,
            "total_bytes": self.total_pages * PAGE_BYTES,
            "done_bytes": self.done_pages * PAGE_BYTES,
            "faults": self.faults + sum(task.faults for task in self.tasks.values()),
            "finished_at": self.finished_ns,
            "error": self.error,
        }


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
        self.progress = description.with_name(PROGRESS)
        self.lock = Lock()
        self.work = Condition(self.lock)
        self.pulls: deque[_Pull] = deque()
        self.pulling: dict[str, _Pull] = {}
        self.dumps: dict[tuple[int, int], tuple[Pagemap, PagesFile | None]] = {}
        self.problem: BaseException | None = None
        self.alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.written = ""

    # Starting

    def start(self, inherited: dict[str, int]) -> None:
        """Go on with what an earlier server left, or begin; tells systemd when CRIU may come."""
        if inherited:
            self._recall()
        for container in self.containers:
            line = inherited.pop(f"criu.{container.number}", None)
            listener = inherited.pop(f"listen.{container.number}", None)
            if line is not None:
                container.line = socket.socket(fileno=line)
                if listener is not None:
                    os.close(listener)
                    fdstore.remove(f"listen.{container.number}")
            elif listener is not None:
                container.listener = socket.socket(fileno=listener)
            else:
                container.listener = self._listen(container)
        self._find_lost(inherited)
        for name, fd in inherited.items():
            self._adopt(name, fd)
        for _ in range(min(MOST_THREADS, os.cpu_count() or 1)):
            self._thread(self._pull)
        fdstore.ready(f"{len(self.containers)} containers")

    def _listen(self, container: Container) -> socket.socket:
        path = container.work / SOCKET
        fresh = container.work / "lazy-pages.new"
        fresh.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(fresh))
        listener.listen()
        fdstore.store(f"listen.{container.number}", listener.fileno())
        fresh.rename(path)  # whoever sees it can connect
        return listener

    def _recall(self) -> None:
        """Take over from the last progress what only a living server counts."""
        try:
            told = json.loads(self.progress.read_text())["containers"]
        except (OSError, ValueError, KeyError):
            return
        for container, before in zip(self.containers, told, strict=False):
            container.faults = before["faults"]
            container.error = before["error"]
            if before["finished_at"] is not None:
                container.finished_ns = before["finished_at"]
                container.total_pages = container.done_pages = before["total_bytes"] // PAGE_BYTES

    def _find_lost(self, inherited: dict[str, int]) -> None:
        """Tell of children whose descriptor died with the server before systemd had it."""
        for path in self.journals.glob("*.events"):
            for slot, message in enumerate(kept_messages(path)):
                child = f"{path.stem}.{slot}"
                if message.event != UFFD_EVENT_FORK or child in inherited:
                    continue
                if not events_file(self.journals, child).exists():
                    self.containers[int(child.split(".")[1])].error = f"memory of a child was lost ({child})"

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
            handlers: dict[int, Callable[[], None]] = {}
            for container in self.containers:
                if container.line is not None and not container.restored:
                    handlers[container.line.fileno()] = lambda c=container: self._hear(c)  # type: ignore[misc]
                elif container.listener is not None:
                    handlers[container.listener.fileno()] = lambda c=container: self._accept(c)  # type: ignore[misc]
            for fd in handlers:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(SOON_MS if self._waiting() else PROGRESS_MS):
                if fd in handlers:
                    handlers[fd]()
                else:
                    os.eventfd_read(self.alarm)
            if self.problem is not None:
                raise self.problem
            complete = all(container.complete for container in self.containers)
            self._tell()
            if complete:
                break
        for path in self.journals.iterdir():
            path.unlink()
        self.journals.rmdir()

    def _accept(self, container: Container) -> None:
        assert container.listener is not None
        line, _ = container.listener.accept()
        fdstore.store(f"criu.{container.number}", line.fileno())
        container.line = line
        container.listener.close()
        container.listener = None
        fdstore.remove(f"listen.{container.number}")

    def _hear(self, container: Container) -> None:
        """Take the next message of CRIU; it is only peeked at until systemd has the descriptor."""
        line = container.line
        assert line is not None
        data, fds = _receive(line, socket.MSG_PEEK)
        try:
            if not data:
                container.error = container.error or "CRIU ended before the restore was finished"
                self._restored(container)
                return
            if len(data) < 4:
                return
            (pid,) = struct.unpack("<i", data[:4])
            if pid == RESTORE_FINISHED:  # stays in the socket: a server that is started anew sees it, too
                self._restored(container)
            elif pid < 0:
                line.recv(4)
            elif fds:
                self._welcome(container, pid, fds)
                for fd in _receive(line, 0)[1]:
                    os.close(fd)
        finally:
            for fd in fds:
                os.close(fd)

    def _welcome(self, container: Container, pid: int, fds: list[int]) -> None:
        name = f"task.{container.number}.{pid}"
        if name in container.tasks:  # the server before us died in this very place
            return
        fdstore.store(name, fds[0])
        try:
            pagemap, source = self._dump(container, pid)
        except (OSError, UpgradeError) as e:
            container.error = str(e)
            assert container.line is not None
            container.line.shutdown(socket.SHUT_RDWR)  # CRIU fails, and ends the tasks
            return
        self._add(container, name, fds.pop(0), Layout(pagemap.lazy), source, pagemap)

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
            pull = _Pull(container, task, pagemap.lazy_pages)
            self.pulls.append(pull)
            self.pulling[name] = pull
            self.work.notify_all()
        self._thread(lambda: self._serve(container, task))
        return task

    def _forked(self, container: Container, pagemap: Pagemap, parent: Task, fd: int, slot: int) -> None:
        """Take over the child of a fork; its parent's gate is held, so nothing moves meanwhile."""
        name = f"{parent.name}.{slot}"
        fdstore.store(name, fd)  # before anything else: nobody else has it
        journal = Journal(self.journals, name, -(-pagemap.pages // WINDOW_PAGES))
        # What its parent had, it has.
        journal.done[:] = parent.journal.done[:]
        journal.close()
        self._add(container, name, fd, parent.layout.copy(), parent.source, pagemap)

    def _serve(self, container: Container, task: Task) -> None:
        task.serve()
        with task.gate.alone():
            # From here on a page that is missing is a page of zeroes, and rightly so.
            fdstore.remove(task.name)
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

    def _claim(self) -> "tuple[_Pull, int | None] | None":
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

    def _tell(self) -> None:
        """Write the progress, if there is any."""
        with self.work:
            text = json.dumps({"containers": [container.to_json() for container in self.containers]})
        if text == self.written:
            return
        fresh = self.progress.with_name(self.progress.name + ".new")
        fresh.write_text(text + "\n")
        fresh.replace(self.progress)
        self.written = text


class _Pull:
    """How far the background has come with a task; under the server's lock."""

    def __init__(self, container: Container, task: Task, lazy_pages: int) -> None:
        self.container = container
        self.task = task
        self.chunks = task.chunks()
        self.next = 0
        self.running = 0
        self.lazy_pages = lazy_pages
        self.counted = 0

    def claim(self) -> int | None:
        """Take the next chunk; those that are done already need no turn."""
        while self.next < self.chunks and (self.task.gone or self.task.chunk_done(self.next)):
            self.next += 1
        self.running += 1
        if self.next == self.chunks:
            return None
        self.next += 1
        return self.next - 1

    def exhausted(self) -> bool:
        """Tell whether there is nothing left to take."""
        return self.next == self.chunks

    def ended(self, _chunk: int | None) -> None:
        """Note the end of what was taken."""
        self.running -= 1
        share = self.lazy_pages * (self.next - self.running) // self.chunks if self.chunks else 0
        share = self.lazy_pages if self.is_done() else max(share, self.counted)
        self.container.done_pages += share - self.counted
        self.counted = share

    def is_done(self) -> bool:
        """Tell whether everything that was taken has ended, and nothing is left."""
        return self.exhausted() and not self.running


def _receive(line: socket.socket, flags: int) -> tuple[bytes, list[int]]:
    """Receive up to five bytes and a descriptor; ``socket.recv_fds`` ignores its flags."""
    try:
        data, ancillary, _, _ = line.recvmsg(5, socket.CMSG_SPACE(4), flags | socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
