# SPDX-License-Identifier: MIT
"""Which modules this host runs on: drivers of its network cards and disks, file systems, packet filters."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from upgrade.check import blocks
from upgrade.host import Host
from upgrade.kexec import filesystems, modules
from upgrade.kexec.filesystems import Mount

SYS_BLOCK = "/sys/class/block"
SYS_NET = "/sys/class/net"

# File systems that hold data or programs but lie on no block device of ours
_OTHERS = ("overlay", "aufs", *filesystems.KEEP_DATA)
# Those that an engine makes for a container: not the host's, as it may not see them
OF_CONTAINERS = ("overlay", "aufs", "fuse")
# Networks and packet filters of containers; what of these is loaded has been asked for by somebody
_NETWORK = (
    "8021q",
    "arp",
    "bond",
    "br_netfilter",
    "bridge",
    "dummy",
    "ebt",
    "geneve",
    "ifb",
    "ip6t",
    "ip6_",
    "ipt",
    "ip_",
    "ipvlan",
    "macvlan",
    "nf_",
    "nft_",
    "openvswitch",
    "sch_",
    "tap",
    "tun",
    "veth",
    "vrf",
    "vxlan",
    "wireguard",
    "xfrm",
    "xt_",
)
# The modules of the device mapper's targets, and of levels of RAID that share one
_MAPPERS = {"crypt": "dm_crypt", "multipath": "dm_multipath", "lvm": "dm_mod", "dm": "dm_mod"}
_LEVELS = {"raid4": "raid456", "raid5": "raid456", "raid6": "raid456"}


@dataclass(frozen=True, slots=True)
class Driven:
    """A device on the way to a network card or a disk."""

    path: Path
    """In sysfs."""
    module: str
    """The module of its driver; empty if sysfs does not say, or no list of a kernel's modules would have it."""
    modalias: str


def network_cards(host: Host) -> dict[str, list[Driven]]:
    """Return the network cards that are not down, each with the devices that it hangs on."""
    names = [
        name
        for name in host.list(SYS_NET)
        if host.exists(f"{SYS_NET}/{name}/device")
        and host.read_or(f"{SYS_NET}/{name}/operstate", "unknown") not in ("down", "notpresent")
    ]
    known = listed(host)
    return {name: list(chain(host, host.path(f"{SYS_NET}/{name}"), known)) for name in names}


def root(host: Host) -> Mount | None:
    """Return the mount of the root file system."""
    found = [mount for mount in filesystems.mounts(host) if mount.where == "/"]
    return found[-1] if found else None


def disks(host: Host, mount: Mount) -> dict[str, list[Driven]]:
    """Return the disks that a file system lies on, each with the devices that it hangs on."""
    known = listed(host)
    names = [layer.name for layer in blocks.layers(host, mount) if not layer.below]
    return {name: list(chain(host, host.path(f"{SYS_BLOCK}/{name}"), known)) for name in names}


def mappers(host: Host, mount: Mount) -> set[str]:
    """Return the modules that make a file system's device out of others: device mapper, RAID."""
    found = set()
    for layer in blocks.layers(host, mount):
        if layer.kind in _MAPPERS:
            found |= {"dm_mod", _MAPPERS[layer.kind]}
        elif layer.below and layer.kind != "partition":
            found |= {"md_mod", _LEVELS.get(layer.kind, layer.kind)}
    return found


def stored(host: Host) -> list[Mount]:
    """Return one mount of each file system that holds data: on block devices, remote ones, overlays."""
    found: dict[tuple[str, str], Mount] = {}
    for mount in filesystems.mounts(host):
        if mount.source.startswith("/dev/") or mount.kind.startswith(_OTHERS):
            found.setdefault((mount.device, mount.kind), mount)
    return list(found.values())


def is_needed(host: Host, mount: Mount) -> bool:
    """Tell whether the boot fails without a mount: the root, and what fstab(5) has without ``nofail``."""
    for line in host.read_or("/etc/fstab", "").splitlines():
        words = line.split()
        if len(words) > 3 and words[1] == mount.where and not words[0].startswith("#"):
            return not {"nofail", "noauto"} & set(words[3].split(","))
    return mount.where == "/"


def network_modules(host: Host) -> list[str]:
    """Return the loaded modules of networks and packet filters."""
    return [name for name in loaded(host) if name.startswith(_NETWORK)]


def foreign_modules(host: Host) -> list[str]:
    """Return the loaded modules that did not come with the kernel (taint ``O``, tainted-kernels.rst)."""
    return [name for name in loaded(host) if "O" in host.read_or(f"/sys/module/{name}/taint", "")]


def loaded(host: Host) -> list[str]:
    """Return the names of all loaded modules."""
    return sorted(line.split()[0] for line in host.read_or("/proc/modules", "").splitlines() if line)


def listed(host: Host) -> frozenset[str]:
    """Return the modules that run and that every kernel would list: loaded ones, and built-in ones with a name.

    A driver that is never a module (``pcieport``) has a name in sysfs, too, but is in no ``modules.builtin``.
    """
    return frozenset(loaded(host)) | modules.builtin(host, host.release())


def chain(host: Host, device: Path, known: frozenset[str]) -> Iterator[Driven]:
    """Yield the devices with drivers from a class device up to the bus it hangs on."""
    end = host.path("/sys/devices").resolve()
    at = device.resolve()
    while at != end and at.is_relative_to(end):
        if (at / "driver").exists():
            module = at / "driver/module"
            name = os.path.basename(os.path.realpath(module)) if module.exists() else ""
            yield Driven(at, name if name in known else "", _text(at / "modalias"))
        at = at.parent


def _text(file: Path) -> str:
    """Return an attribute's text; empty if it is not there."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
