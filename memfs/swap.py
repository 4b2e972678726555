# SPDX-License-Identifier: MIT
"""A swap device for a while: pages that are moved pass through it.

Made on a range before its store is. It must be a device that the kernel reads and writes at once, as it does with
pmem: on others a page stays in the swap cache and comes back in the frame that it had.
"""

import errno
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from memfs import calls, store

LABEL = "seamless-swap"
CGROUPS = "sys/fs/cgroup"

# include/linux/swap.h, union swap_header: s_volume_name and magic
_LABEL = slice(1052, 1068)
_MAGIC = slice(4086, 4096)


class SwapFailed(Exception):
    """mkswap failed; the text is its own."""


@contextmanager
def swap(device: Path) -> Iterator[int]:
    """Let the kernel swap to ``device`` first while the block runs; yields its size in bytes.

    :raises store.ForeignData: if the device holds somebody else's data
    :raises SwapFailed: if mkswap fails
    :raises OSError: if the kernel refuses to swap to it, or (afterwards) to bring back what it swapped
    """
    if not is_ours(device):
        store.refuse_foreign(device)
    command = ["mkswap", "-q", "-f", "-L", LABEL, os.fspath(device)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SwapFailed(f"mkswap: {(done.stderr or done.stdout).strip()}")
    try:
        calls.swapon(device)
        with device.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
        yield size
    finally:
        remove(device)


def remove(device: Path) -> None:
    """Bring back what was swapped to ``device`` and wipe its header; nothing happens if it is not our swap."""
    if not is_ours(device):
        return
    try:
        calls.swapoff(device)
    except OSError as e:
        if e.errno != errno.EINVAL:  # not in use
            raise
    store.wipe(device)


def is_ours(device: Path) -> bool:
    """Tell whether a device holds the header of a swap that :func:`swap` made."""
    with device.open("rb") as f:
        head = f.read(4096)
    return head[_MAGIC] == b"SWAPSPACE2" and head[_LABEL].rstrip(b"\0") == LABEL.encode()


def limits(pids: Iterable[int], root: Path = Path("/")) -> dict[str, str]:
    """Return the limits of swap that apply to processes: file below the root and its value in bytes.

    Documentation/admin-guide/cgroup-v2.rst, "memory.swap.max": of a process's cgroup and of all above it.
    """
    found = {}
    for cgroup in {_cgroup(pid, root) for pid in pids}:
        while cgroup.strip("/"):
            file = f"{CGROUPS}/{cgroup.strip('/')}/memory.swap.max"
            try:
                value = (root / file).read_text().strip()
            except OSError:
                value = "max"  # the memory controller is off here, and so for all below
            if value != "max":
                found[file] = value
            cgroup = cgroup.rpartition("/")[0]
    return found


def lift(limits: Mapping[str, str], root: Path = Path("/")) -> None:
    """Take limits of swap away; :func:`restore` puts them back."""
    for file in limits:
        (root / file).write_text("max")


def restore(limits: Mapping[str, str], root: Path = Path("/")) -> None:
    """Set limits of swap to what they were; a cgroup that is gone meanwhile needs none."""
    for file, value in limits.items():
        try:
            (root / file).write_text(value)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            if e.errno != errno.ENODEV:  # removed while it was open
                raise


@contextmanager
def lifted(limits: Mapping[str, str], root: Path = Path("/")) -> Iterator[None]:
    """Let cgroups swap while the block runs."""
    try:
        lift(limits, root)
        yield
    finally:
        restore(limits, root)


def _cgroup(pid: int, root: Path) -> str:
    try:
        lines = (root / "proc" / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
