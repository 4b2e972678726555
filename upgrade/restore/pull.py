# SPDX-License-Identifier: MIT
"""How far the background has come with a task: which chunks of its pages are taken, and which are left."""

from upgrade.restore.lazytask import Task
from upgrade.restore.served import Container


class Pull:
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
