# SPDX-License-Identifier: MIT
"""The block device of a range: ``/dev/pmemN`` of the legacy ``nd_e820`` driver.

Linux names the devices in the order of their probing, so a device is found by its physical address.
"""

import time
from collections.abc import Callable
from pathlib import Path

from memfs import namespace
from memfs.ranges import Range

MODULES = ("nd_e820", "nd_pmem")


def find(span: Range, root: Path = Path("/")) -> Path | None:
    """Return the block device of the namespace at ``span``; None if the kernel shows none (yet)."""
    space = namespace.find(span, root)
    return space.block_device if space is not None else None


def wait(
    span: Range, timeout_s: float, root: Path = Path("/"), sleep: Callable[[float], None] = time.sleep
) -> Path:
    """Return the device of ``span``; it appears asynchronously.

    :raises TimeoutError: if it did not appear within ``timeout_s`` seconds
    """
    deadline = time.monotonic() + timeout_s
    while (device := find(span, root)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no pmem device at {span} after {timeout_s} s")
        sleep(0.01)
    return device
