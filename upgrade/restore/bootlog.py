# SPDX-License-Identifier: MIT
"""When things happened in the running boot, read from the kernel's log and tied to the time stamp counter.

The log's clock has microseconds and starts with the kernel; a mark of our own, written between two readings of
the counter, ties the two.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from upgrade.clock import Clock, Frequency
from upgrade.host import Host

KERNEL_START = ""
"""Key of the moment at which the log's clock was zero."""

RATE_LIMIT = "/proc/sys/kernel/printk_devkmsg"


def tsc_of(
    marks: tuple[str, ...], clock: Clock, rate: Frequency, host: Host, kmsg: Path = Path("/dev/kmsg")
) -> dict[str, int]:
    """Return the TSC at which each text of ``marks`` was first logged, and that of :data:`KERNEL_START`.

    Texts that were not found are left out.
    """
    own = f"seamless-upgrade: tie {clock.tsc()}"
    fd = os.open(kmsg, os.O_RDWR | os.O_NONBLOCK)
    try:
        with _unlimited(host):
            before = clock.tsc()
            os.write(fd, own.encode())
            tied = (before + clock.tsc()) // 2
            monotonic_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        records = _records(fd)
    finally:
        os.close(fd)
    # Where the mark was swallowed (printk.devkmsg=off), the two clocks differ by the kernel's first milliseconds.
    now_us = next((at for at, text in reversed(records) if text == own), monotonic_us)

    def tsc(at_us: int) -> int:
        return tied - round((now_us - at_us) * rate.hertz / 1e6)

    found = {KERNEL_START: tsc(0)}
    for at_us, text in records:
        for mark in marks:
            if mark in text:
                found.setdefault(mark, tsc(at_us))
    return found


@contextmanager
def _unlimited(host: Host) -> Iterator[None]:
    """Let our mark through: the kernel limits what userspace may log, and systemd logs a lot while it boots."""
    before = host.read_or(RATE_LIMIT, "")
    with suppress(OSError):
        host.write(RATE_LIMIT, "on")
    try:
        yield
    finally:
        with suppress(OSError):
            host.write(RATE_LIMIT, before)


def _records(fd: int) -> list[tuple[int, str]]:
    """Read all of ``/dev/kmsg``: ``priority,sequence,microseconds,flags;text``."""
    found: list[tuple[int, str]] = []
    while True:
        try:
            record = os.read(fd, 8192).decode(errors="replace")
        except BlockingIOError:
            return found
        except BrokenPipeError:  # overwritten while we read: the kernel goes on with the oldest left
            continue
        head, _, text = record.partition(";")
        found.append((int(head.split(",")[2]), text.partition("\n")[0]))
