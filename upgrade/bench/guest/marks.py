# SPDX-License-Identifier: MIT
"""Marks in the kernel's log: on a serial console they outlive the kernel that wrote them."""

import os
from contextlib import suppress
from pathlib import Path

KMSG = Path("/dev/kmsg")
RATE_LIMIT = Path("/proc/sys/kernel/printk_devkmsg")
PREFIX = "bench:"


class Marks:
    """Writes marks; each is a name and a number."""

    def __init__(self, kmsg: Path = KMSG) -> None:
        with suppress(OSError):
            RATE_LIMIT.write_text("on\n")
        self.descriptor = os.open(kmsg, os.O_WRONLY)

    def write(self, name: str, value: int) -> None:
        """Write one mark; the console has it when this returns."""
        # <0>: shown on the console whatever its log level is
        os.write(self.descriptor, f"<0>{PREFIX} {name} {value}\n".encode())
