# SPDX-License-Identifier: MIT
"""Processes with memory: children that do step by step what a test wants."""

import gc
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

ZRAM = Path("/sys/class/zram-control")


def private(mib: int) -> mmap.mmap:
    """Return anonymous memory in small pages with random contents."""
    area = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    area[:] = os.urandom(mib << 20)
    return area


def shared(mib: int) -> mmap.mmap:
    """Return shared memory with random contents."""
    area = mmap.mmap(-1, mib << 20)
    area[:] = os.urandom(mib << 20)
    return area


def digest(area: mmap.mmap) -> str:
    """Return a checksum of memory."""
    return hashlib.sha256(area).hexdigest()


class Child:
    """A child process that does one of its works at each :meth:`go` and keeps what they return alive."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self.works = works
        self.pid = 0

    def __enter__(self) -> Self:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                gc.disable()  # it would copy, or give back, pages of the parent's
                os.close(self._orders)
                kept = []
                for work in self.works:
                    if os.read(orders, 1):
                        kept.append(work())
                        os.write(answers, repr(kept[-1]).encode())
                os.read(orders, 1)
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)
        return self

    def go(self) -> str:
        """Let the child do its next work; return what that returned, as ``repr`` shows it."""
        os.write(self._orders, b"x")
        answer = os.read(self._answers, 1 << 16).decode()
        assert answer, "the child has failed"
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._orders)
        os.close(self._answers)
        os.waitpid(self.pid, 0)


@contextmanager
def zram(mib: int) -> Iterator[Path]:
    """Make a block device of memory: like pmem the kernel writes it at once."""
    number = (ZRAM / "hot_add").read_text().strip()
    state = Path(f"/sys/block/zram{number}")
    try:
        (state / "disksize").write_text(f"{mib}M")
        yield Path(f"/dev/zram{number}")
    finally:
        (state / "reset").write_text("1")
        (ZRAM / "hot_remove").write_text(number)
