# SPDX-License-Identifier: MIT
"""What a mounted file system lies on: partitions, encryption, volumes, and the disk or server at the bottom."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from upgrade.host import Host
from upgrade.kexec import filesystems
from upgrade.kexec.filesystems import Mount

MOUNTS = "/proc/self/mountinfo"
_BLOCK = "/sys/class/block"
_REMOTE = ("nbd", "rbd", "drbd")
_MEMORY = ("ram", "zram", "pmem")


@dataclass(frozen=True, slots=True)
class Layer:
    """A block device below a file system."""

    name: str
    kind: str
    """``partition``, ``crypt``, ``lvm``, ``multipath``, ``dm``, ``raid1`` and the like, ``disk``, ``usb``,
    ``memory``, ``loop``, ``remote``."""
    detail: str = ""
    below: tuple[str, ...] = ()
    """The devices that it is made of."""


def mount_of(host: Host, path: str) -> Mount | None:
    """Return the file system that holds a path."""
    best = None
    for mount in filesystems.parse(host.read(MOUNTS)):
        above = mount.where.rstrip("/") + "/"
        if (path + "/").startswith(above) and (best is None or len(mount.where) >= len(best.where)):
            best = mount
    return best


def layers(host: Host, mount: Mount) -> list[Layer]:
    """Return everything below a file system, the upper ones first; empty if it lies on no block device."""
    top = _named(host, mount)
    return list(_below(host, top)) if top else []


def device_name(host: Host, number: str) -> str:
    """Return the name of the block device with a number; empty if there is none."""
    try:
        return os.path.basename(os.readlink(host.path(f"/sys/dev/block/{number}")))
    except OSError:
        return ""


def _named(host: Host, mount: Mount) -> str:
    if not mount.device.startswith("0:"):
        return device_name(host, mount.device)
    if not mount.source.startswith("/dev/"):
        return ""
    name = mount.source.rpartition("/")[2]  # btrfs has a number of its own
    mapped = (n for n in host.list(_BLOCK) if host.read_or(f"{_BLOCK}/{n}/dm/name", "") == name)
    return next(mapped, name if host.exists(f"{_BLOCK}/{name}") else "")


def _below(host: Host, name: str) -> Iterator[Layer]:
    base = f"{_BLOCK}/{name}"
    real = Path(os.path.realpath(host.path(base)))
    if host.exists(f"{base}/partition"):
        yield Layer(name, "partition", below=(real.parent.name,))
        yield from _below(host, real.parent.name)
        return
    under = tuple(host.list(f"{base}/slaves"))
    if under:
        yield Layer(name, *_made(host, base), under)
    else:
        yield Layer(name, *_bottom(host, name, real))
    for each in under:
        yield from _below(host, each)


def _made(host: Host, base: str) -> tuple[str, str]:
    """Return kind and detail of a device that is made of others."""
    level = host.read_or(f"{base}/md/level", "")
    if level:
        return level, ""
    family = host.read_or(f"{base}/dm/uuid", "").partition("-")[0]
    kinds = {"CRYPT": "crypt", "LVM": "lvm", "mpath": "multipath"}
    return kinds.get(family, "dm"), host.read_or(f"{base}/dm/name", "")


def _bottom(host: Host, name: str, real: Path) -> tuple[str, str]:
    """Return kind and detail of a device at the bottom."""
    base = f"{_BLOCK}/{name}"
    if name.startswith("nvme"):
        transports = {
            path.read_text().strip()
            for path in (*real.glob("device/transport"), *real.parent.glob("*/transport"))
        }
        over = sorted(transports - {"pcie", "apple-nvme"})
        return ("remote", f"NVMe over {over[0]}") if over else ("disk", "nvme")
    if name.startswith(_REMOTE):
        return "remote", re.sub(r"\d.*", "", name)
    if re.search(r"/session\d+/", str(real)):
        return "remote", "iSCSI"
    if "/rport-" in str(real):
        return "disk", "Fibre Channel"
    if name.startswith("loop"):
        return "loop", host.read_or(f"{base}/loop/backing_file", "")
    if name.startswith(_MEMORY):
        return "memory", ""
    return ("usb", "") if re.search(r"/usb\d+/", str(real)) else ("disk", "")
