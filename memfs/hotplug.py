# SPDX-License-Identifier: MIT
"""A range that the kernel uses as ordinary memory until it is needed.

The namespace becomes a dax device, the ``kmem`` driver adds it in whole memory blocks, and these are brought online as
*movable*: nothing that could not be moved is ever allocated there, kexec puts no segment there (the resource is
driver-managed), and containers prefer it. What of the range lies before the first whole block stays unused: the frame
map goes there in the new kernel.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from memfs import namespace, sysfs
from memfs.namespace import DAX_BUS, Namespace
from memfs.ranges import Range

MODULES = ("nd_e820", "nd_pmem", "dax_pmem", "device_dax", "kmem")
MEMORY = "sys/devices/system/memory"
_KMEM = f"{DAX_BUS}/drivers/kmem"

T = TypeVar("T")


class NotOnline(Exception):
    """A range cannot be used as ordinary memory; the text says why."""


def online_spans(span: Range, root: Path = Path("/")) -> tuple[Range, ...]:
    """Return the parts of a range that the allocator has, in the order of their addresses."""
    size = block_bytes(root)
    found: list[Range] = []
    for block, path in blocks(span, root):
        if sysfs.read(path / "state") != "online":
            continue
        if found and found[-1].end_bytes == block.start_bytes:
            found[-1] = Range(found[-1].start_bytes, found[-1].size_bytes + size)
        else:
            found.append(block)
    return tuple(found)


def block_bytes(root: Path = Path("/")) -> int:
    """Return the size of a memory block (Documentation/admin-guide/mm/memory-hotplug.rst)."""
    return int(sysfs.read(root / MEMORY / "block_size_bytes") or "8000000", 16)


def blocks(span: Range, root: Path = Path("/")) -> list[tuple[Range, Path]]:
    """Return the whole memory blocks in a range, each with its directory in sysfs (which need not be there)."""
    size = block_bytes(root)
    numbers = range(-(-span.start_bytes // size), span.end_bytes // size)
    return [(Range(number * size, size), root / MEMORY / f"memory{number}") for number in numbers]


def online(path: Path) -> None:
    """Bring a memory block online as movable memory if it is not; nothing happens if there is no such block."""
    if sysfs.read(path / "state") == "offline":
        sysfs.write(path / "state", "online_movable")


def bring_blocks_online(paths: Iterable[Path]) -> OSError | None:
    """Bring memory blocks online as movable memory, those that are offline; return the first refusal.

    One that cannot be keeps no other from it.
    """
    refused: OSError | None = None
    for path in paths:
        try:
            online(path)
        except OSError as e:
            refused = refused or e
    return refused


def bring_online(span: Range, timeout_s: float, root: Path = Path("/")) -> tuple[Range, ...]:
    """Give a range to the allocator, whatever it was before; return the parts that are online then.

    What it held is lost. Nothing happens to what is online already.

    :raises NotOnline: if the kernel refuses
    """
    inside = blocks(span, root)
    if not inside:
        raise NotOnline(f"{span} holds no whole memory block of {block_bytes(root) >> 20} MiB")
    space = _wait(lambda: namespace.find(span, root), timeout_s, f"no namespace at {span}")
    if not _is_memory(space):
        with _nobody_onlines(root):
            _to_kmem(space.dax_device or _make_dax_device(space, timeout_s), timeout_s, root)
    refused = bring_blocks_online(path for _, path in inside)
    found = online_spans(span, root)
    if not found:
        raise NotOnline(f"no block of {span} can be brought online ({refused or 'there is none'}): see dmesg")
    return found


@contextmanager
def _nobody_onlines(root: Path) -> Iterator[None]:
    """Keep the kernel from bringing new memory online by itself, which need not be movable then."""
    policy = root / MEMORY / "auto_online_blocks"
    before = sysfs.read(policy)
    sysfs.write(policy, "offline")
    try:
        yield
    finally:
        sysfs.write(policy, before)


def _is_memory(space: Namespace) -> bool:
    device = space.dax_device
    return bool(device) and (space.root / _KMEM / device).exists()


def _make_dax_device(space: Namespace, timeout_s: float) -> str:
    """Make a dax device of a namespace; ndctl writes the info block that says so."""
    if sysfs.read(space.directory / "force_raw") == "1":
        namespace.let_go(space)
        sysfs.write(space.directory / "force_raw", "0")
    command = [
        "ndctl",
        "create-namespace",
        "--force",
        f"--reconfig={space.name}",
        "--mode=devdax",
        "--map=mem",
    ]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise NotOnline("ndctl is not installed: apt-get install ndctl") from e
    if done.returncode != 0:
        raise NotOnline(f"ndctl: {done.stderr.strip()}")
    try:
        chosen = json.loads(done.stdout)["daxregion"]["devices"][0]["chardev"]
    except (ValueError, LookupError, TypeError) as e:
        raise NotOnline(f"ndctl does not name the dax device that it made: {done.stdout.strip()}") from e
    _wait(lambda: (space.root / DAX_BUS / "devices" / chosen).exists() or None, timeout_s, f"no {chosen}")
    return str(chosen)


def _to_kmem(device: str, timeout_s: float, root: Path) -> None:
    """Have the ``kmem`` driver take a dax device over."""
    bus = root / DAX_BUS

    def attempt() -> bool | None:
        if (bus / "drivers/device_dax" / device).exists():
            sysfs.write(bus / "drivers/device_dax/unbind", device)
        try:
            sysfs.write(root / _KMEM / "new_id", device)  # known to the driver, and probed if nobody has it
        except FileExistsError:
            sysfs.write(root / _KMEM / "bind", device)
        return (root / _KMEM / device).exists() or None

    _wait(
        attempt,
        timeout_s,
        f"kmem does not take {device}: see dmesg; no memory node is known for the range if "
        "it lies behind all ordinary memory",
    )


def _wait(attempt: Callable[[], T | None], timeout_s: float, problem: str) -> T:
    deadline = time.monotonic() + timeout_s
    while True:
        why = ""
        try:
            if (found := attempt()) is not None:
                return found
        except OSError as e:
            why = f" ({e})"
        if time.monotonic() > deadline:
            raise NotOnline(f"{problem}{why}")
        time.sleep(0.01)
