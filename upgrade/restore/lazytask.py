# SPDX-License-Identifier: MIT
"""One task whose memory comes on demand: its faults, its events and the pull of the rest.

Order is everything here. The kernel holds a task that changes its memory until the event is read, and answers EAGAIN
to copies meanwhile; from the reading on it relies on us. So a copy looks up where a page belongs and puts it there
without an event being read in between (:class:`Gate`): no copy can bring back what a task has thrown away.
"""

import errno
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from threading import Condition

from upgrade import userfaultfd
from upgrade.restore.journal import Journal
from upgrade.restore.lazy import Layout
from upgrade.restore.pagesfile import PagesFile
from upgrade.userfaultfd import (
    PAGE_BYTES,
    UFFD_EVENT_FORK,
    UFFD_EVENT_PAGEFAULT,
    Message,
)

WINDOW_PAGES = 16
"""Pages that one fault brings at once, and the unit of what is known to be done."""
CHUNK_PAGES = 1024
"""Pages that a thread of the background takes at once."""
BUSY_PAGES = 64
"""The most that one ioctl copies while the task has faults, which wait for its end."""
BUSY_NS = 20_000_000

PAUSE_S = 0.000_05
"""How long to wait for a task that has to take notice that its event was read."""

_GONE = (errno.ESRCH, errno.ENOSPC)
_LATER = (errno.EAGAIN, errno.ENOMEM, errno.EINTR)
# Below vm.mmap_min_addr, 64 KiB by default, the kernel accepts nothing.
_STARTS = (1 << 16, 1 << 20)
# Ends of address spaces (TASK_SIZE): of 64 bits, of 32 bits under a kernel of 64.
_ENDS = (0x7FFFFFFFF000, 0xFFFFE000, 0xC0000000)

Forked = Callable[["Task", int, int], None]
"""Called with a task, the descriptor of its new child and the number of the message that told of it."""


class Gate:
    """Copies of the background share it; reading messages has it alone and goes first."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._sharing = 0
        self._waiting = 0
        self._taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep messages from being read."""
        with self._changed:
            while self._taken or self._waiting:
                self._changed.wait()
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                if not self._sharing:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep everyone else out; waits for the copies that are under way."""
        with self._changed:
            self._waiting += 1
            while self._taken or self._sharing:
                self._changed.wait()
            self._waiting -= 1
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


class Task:
    """A userfaultfd, the layout of its lazy pages and the file that has them."""

    def __init__(
        self,
        name: str,
        fd: int,
        layout: Layout,
        source: PagesFile | None,
        pages: int,
        journal: Journal,
        forked: Forked,
    ) -> None:
        os.set_blocking(fd, False)  # CRIU's are; others could not be polled
        self.name = name
        self.fd = fd
        self.layout = layout
        self.source = source
        self.pages = pages
        self.journal = journal
        self.forked = forked
        self.gate = Gate()
        self.faults = 0
        self.unreadable = 0
        self.gone = False
        self.finished = os.eventfd(0, os.EFD_CLOEXEC)
        self._fault_at_ns = 0
        self._waiting: list[int] = []

    # Faults and events: by the task's own thread

    def serve(self) -> None:
        """Answer until :meth:`finish` is called."""
        self.wake_all()
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.register(self.finished, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.finished in ready:
                return
            if ready.get(self.fd, 0) & ~select.POLLIN:
                raise OSError(errno.EBADF, f"{self.name}: cannot be polled")
            with self.gate.alone():
                self.answer()

    def finish(self) -> None:
        """End :meth:`serve`."""
        os.eventfd_write(self.finished, 1)

    def wake_all(self) -> None:
        """Have every fault reported again: a server that died may have read some, and nobody else will answer."""
        for start, end in product(_STARTS, _ENDS):
            try:
                userfaultfd.wake(self.fd, start, end - start)
            except OSError as e:
                if e.errno != errno.EINVAL:
                    raise
            else:
                return
        raise OSError(errno.EINVAL, f"{self.name}: no address space is as large as expected")

    def answer(self) -> None:
        """Read and answer all messages."""
        while True:
            message = self.journal.read(self.fd)
            if message is not None:
                self._take(message)
                continue
            if not self._waiting:
                return
            again, self._waiting = self._waiting, []
            for address in again:
                self._fault(address)
            if self._waiting and not self.gone:
                time.sleep(PAUSE_S)

    def _take(self, message: Message) -> None:
        if message.event == UFFD_EVENT_PAGEFAULT:
            self.faults += 1
            self._fault(message.address)
        elif message.event == UFFD_EVENT_FORK:
            slot = self.journal.used
            self.forked(self, message.descriptor, slot)
            self.journal.keep()
        elif self.layout.apply(message):
            self.journal.keep()

    def _fault(self, address: int) -> None:
        """Answer a fault, and bring the pages beside it along."""
        self._fault_at_ns = time.monotonic_ns()
        run = self.layout.at(address)
        if run is None:
            self._zero(address)
            return
        page = run.page + (address - run.address) // PAGE_BYTES
        first = max(page - page % WINDOW_PAGES, run.page)
        last = min(page - page % WINDOW_PAGES + WINDOW_PAGES, run.page + run.pages)
        try:
            done = self._copy(address - (page - first) * PAGE_BYTES, first, last - first)
        except OSError:
            done = 0
        if done == WINDOW_PAGES:
            self.journal.done[page // WINDOW_PAGES] = 1
        if first + done <= page and not self.fill(address, page, 1):
            self._waiting.append(address)

    def _zero(self, address: int) -> None:
        window = WINDOW_PAGES * PAGE_BYTES
        begin = address - address % window
        start, end = self.layout.hole(begin, begin + window, address)
        for first, last in ((start, end), (address, address + PAGE_BYTES)):
            try:
                done = userfaultfd.zero(self.fd, first, last - first)
            except OSError as e:
                if e.errno in _GONE:
                    self.gone = True
                    return
                if e.errno in _LATER:
                    self._waiting.append(address)
                    return
                done = 0
            if first + done > address:
                return
        # there already, or not there any more
        userfaultfd.wake(self.fd, address, PAGE_BYTES)

    # The rest: by the threads of the background

    def chunks(self) -> int:
        """Return how many chunks the pages file has."""
        return -(-self.pages // CHUNK_PAGES)

    def chunk_done(self, chunk: int) -> bool:
        """Tell whether there is nothing left to do for a chunk."""
        first = chunk * CHUNK_PAGES // WINDOW_PAGES
        last = min(first + CHUNK_PAGES // WINDOW_PAGES, -(-self.pages // WINDOW_PAGES))
        return self.journal.done.find(b"\0", first, last) < 0

    def pull(self, chunk: int) -> None:
        """Bring the pages of a chunk to where they belong."""
        at, end = chunk * CHUNK_PAGES, min((chunk + 1) * CHUNK_PAGES, self.pages)
        while at < end and not self.gone:
            with self.gate.shared():
                passed = self._step(at, end)
            if passed == at:
                time.sleep(PAUSE_S)
            at = passed

    def _step(self, at: int, end: int) -> int:
        """Do one ioctl's worth of work for the pages from ``at`` on; returns up to where nothing is left to do."""
        done = self.journal.done
        window = at // WINDOW_PAGES
        behind = -(-end // WINDOW_PAGES)
        if done[window]:
            missing = done.find(b"\0", window, behind)
            return end if missing < 0 else missing * WINDOW_PAGES
        there = done.find(b"\1", window, behind)
        limit = end if there < 0 else there * WINDOW_PAGES
        run = self.layout.next(at, limit)
        passed = limit
        if run is not None:
            busy = time.monotonic_ns() - self._fault_at_ns < BUSY_NS
            passed = run.page + self.fill(
                run.address, run.page, min(run.pages, BUSY_PAGES if busy else run.pages)
            )
            if passed == run.page:
                return at
        if not self.gone:
            whole = behind if passed == end else passed // WINDOW_PAGES
            done[window:whole] = b"\1" * (whole - window)
        return passed

    # Both

    def fill(self, address: int, page: int, count: int) -> int:
        """Bring up to ``count`` pages to an address; returns for how many nothing is left to do.

        None: an event waits, or there is no memory; to be tried again. The gate must be held.
        """
        try:
            return self._copy(address, page, count)
        except OSError as e:
            number = e.errno
        if number == errno.ENOENT:
            # Of a mapping that just moves the kernel says ENOENT, too; but only EAGAIN once its event has begun.
            try:
                return self._copy(address, page, count)
            except OSError as e:
                number = e.errno
        if number in _LATER:
            return 0
        if number in _GONE:
            self.gone = True
            return count
        if number == errno.EEXIST:
            userfaultfd.wake(self.fd, address, PAGE_BYTES)
            return 1
        if count > 1:  # over the end of a mapping, or of what can be read
            return self.fill(address, page, count // 2)
        if number != errno.ENOENT:
            return self._poison(address)
        userfaultfd.wake(self.fd, address, PAGE_BYTES)
        return 1

    def _copy(self, address: int, page: int, count: int) -> int:
        assert self.source is not None, "a run has pages"
        return self.source.copy(self.fd, address, page, count)

    def _poison(self, address: int) -> int:
        """A page that cannot be read must not become a page of zeroes: who touches it gets SIGBUS."""
        try:
            userfaultfd.poison(self.fd, address, PAGE_BYTES)
        except OSError as e:
            if e.errno in _LATER:
                return 0
            self.gone = self.gone or e.errno in _GONE
            if e.errno not in (errno.EEXIST, errno.ENOENT, *_GONE):
                raise
        else:
            self.unreadable += 1
        return 1
