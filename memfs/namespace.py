# SPDX-License-Identifier: MIT
"""The namespace of a range (``namespaceN.0`` of ``nd_e820``), and what it is at the moment.

A namespace is a block device with DAX, a raw block device without, or it is held by a *dax* device, which can give its
memory to the kernel's allocator. Linux decides when ``nd_pmem`` probes it: by the info block that lies 4 KiB into the
range, unless ``force_raw`` is set (drivers/nvdimm/pmem.c, ``nd_pmem_probe``).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memfs import sysfs
from memfs.ranges import Range

NVDIMM_BUS = "sys/bus/nd"
NAMESPACES = f"{NVDIMM_BUS}/devices"
DAX_BUS = "sys/bus/dax"
PMEM_DRIVER = "nd_pmem"


class NamespaceStuck(Exception):
    """The kernel did not make of a namespace what was asked for; the text says where it stands."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace; what it is at the moment is read from sysfs whenever it is asked."""

    name: str
    span: Range
    root: Path = Path("/")

    @property
    def directory(self) -> Path:
        """Return its directory in sysfs."""
        return self.root / NAMESPACES / self.name

    @property
    def holder(self) -> str:
        """Return the dax device that holds it (a name of the nd bus); empty if none does."""
        return sysfs.read(self.directory / "holder")

    @property
    def dax_device(self) -> str:
        """Return the dax device that shows its memory (a name of the dax bus); empty if there is none."""
        holder = self.holder
        found = sorted((self.root / NAMESPACES / holder).glob("dax[0-9]*.[0-9]*")) if holder else []
        return found[0].name if found else ""

    @property
    def driver(self) -> str:
        """Return the driver it is bound to; empty if to none."""
        return _driver(self.directory)

    @property
    def block_device(self) -> Path | None:
        """Return its block device; None if it has none (yet)."""
        # /sys/bus/nd/devices/namespace0.0/block/pmem0
        names = sorted(entry.name for entry in (self.directory / "block").glob("pmem*"))
        device = self.root / "dev" / names[0] if names else None
        return device if device is not None and device.exists() else None


def find(span: Range, root: Path = Path("/")) -> Namespace | None:
    """Return the namespace at ``span``; None if the kernel shows none (yet)."""
    for directory in sorted((root / NAMESPACES).glob("namespace*")):
        try:
            start, size = int(sysfs.read(directory / "resource"), 16), int(sysfs.read(directory / "size"))
        except ValueError:
            continue
        if (start, size) == (span.start_bytes, span.size_bytes):
            return Namespace(directory.name, span, root)
    return None


def wait(span: Range, timeout_s: float, root: Path = Path("/")) -> Namespace:
    """Return the namespace at ``span``; it appears asynchronously.

    :raises NamespaceStuck: if it did not appear within ``timeout_s`` seconds
    """
    deadline = time.monotonic() + timeout_s
    while (found := find(span, root)) is None:
        if time.monotonic() > deadline:
            raise NamespaceStuck(f"no namespace at {span} after {timeout_s} s")
        time.sleep(0.005)
    return found


def force_raw(space: Namespace) -> None:
    """Have the kernel make a raw block device of it when it is probed, whatever its info block says."""
    sysfs.write(space.directory / "force_raw", "1")


def let_go(space: Namespace) -> None:
    """Take a namespace from whoever holds it: its dax device, its block device."""
    holder = space.holder
    if holder:
        device = space.root / NAMESPACES / holder
        if driver := _driver(device):
            sysfs.write(space.root / NVDIMM_BUS / "drivers" / driver / "unbind", holder)
        sysfs.write(device / "namespace", "\n")
    elif driver := space.driver:
        sysfs.write(space.root / NVDIMM_BUS / "drivers" / driver / "unbind", space.name)


def make_block_device(space: Namespace, *, raw: bool, timeout_s: float) -> Path:
    """Make a namespace a block device: raw, whatever its info block says, or with DAX if it has none.

    The kernel probes namespaces asynchronously, beside us: what it has just made of one is taken from it again.

    :raises NamespaceStuck: if it is no such device after ``timeout_s`` seconds
    """
    return _until(lambda: _try_block_device(space, raw), timeout_s, space)


def _try_block_device(space: Namespace, raw: bool) -> Path | None:
    if sysfs.read(space.directory / "force_raw") != str(int(raw)):
        let_go(space)  # force_raw cannot be changed while a driver is bound
        sysfs.write(space.directory / "force_raw", str(int(raw)))
    if space.holder:
        let_go(space)
    if not space.driver:
        sysfs.write(space.root / NVDIMM_BUS / "drivers" / PMEM_DRIVER / "bind", space.name)
    return space.block_device


def _until(attempt: Callable[[], Path | None], timeout_s: float, space: Namespace) -> Path:
    deadline = time.monotonic() + timeout_s
    while True:
        problem = f"driver {space.driver or 'none'}, held by {space.holder or 'nobody'}"
        try:
            if (found := attempt()) is not None:
                return found
        except OSError as e:
            problem += f", {e}"
        if time.monotonic() > deadline:
            raise NamespaceStuck(f"{space.name} is no block device after {timeout_s} s ({problem})")
        time.sleep(0.005)


def _driver(device: Path) -> str:
    try:
        return os.path.basename(os.readlink(device / "driver"))
    except OSError:
        return ""
