# SPDX-License-Identifier: MIT
"""The block device of a range: ``/dev/pmemN`` of the legacy ``nd_e820`` driver.

Linux names the devices in the order of their probing, so a device is found by its physical address.
"""

import time
from collections.abc import Callable
from pathlib import Path

from memfs.ranges import Range

NAMESPACES = "sys/bus/nd/devices"
MODULES = ("nd_e820", "nd_pmem")


def find(span: Range, root: Path = Path("/")) -> Path | None:
    """Return the block device of the namespace at ``span``; None if the kernel shows none (yet)."""
    for namespace in sorted((root / NAMESPACES).glob("namespace*")):
        try:
            start = int((namespace / "resource").read_text(), 16)
            size = int((namespace / "size").read_text())
        except (OSError, ValueError):
            continue
        if (start, size) == (span.start_bytes, span.size_bytes):
            return block_device(namespace, root)
    return None


def block_device(namespace: Path, root: Path) -> Path | None:
    """Return the block device of the namespace at that directory of sysfs; None if it has none."""
    # /sys/bus/nd/devices/namespace0.0/block/pmem0
    names = sorted(entry.name for entry in (namespace / "block").glob("pmem*"))
    device = root / "dev" / names[0] if names else None
    return device if device is not None and device.exists() else None


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
