# SPDX-License-Identifier: MIT
"""Devices, their drivers, and what both can do, as sysfs and ``/proc/kallsyms`` show it."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from upgrade.host import Host

KALLSYMS = "/proc/kallsyms"

# include/uapi/linux/pci_regs.h
_COMMAND, _BUS_MASTER = 4, 0x4

BRIDGE, DISPLAY, ACCELERATOR = 0x06, 0x03, 0x12
"""The first byte of a PCI device's class."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that a driver has taken."""

    bus: str
    name: str
    """``0000:00:1f.2``, ``virtio0``."""
    driver: str
    module: str
    """Empty where the driver is built into the kernel."""

    @property
    def path(self) -> str:
        """Return its directory."""
        return f"/sys/bus/{self.bus}/devices/{self.name}"


def bound(host: Host, bus: str = "") -> list[Device]:
    """Return every device that has a driver, of one bus or of all."""
    return [each for name in ([bus] if bus else host.list("/sys/bus")) for each in _bound(host, name)]


def _bound(host: Host, bus: str) -> Iterator[Device]:
    for driver in host.list(f"/sys/bus/{bus}/drivers"):
        base = f"/sys/bus/{bus}/drivers/{driver}"
        with os.scandir(host.path(base)) as files:
            links = sorted(each.name for each in files if each.is_symlink())
        module = target(host, f"{base}/module") if "module" in links else ""
        if not host.exists(
            f"/sys/module/{module}/initstate"
        ):  # of what is built in only parameters are shown
            module = ""
        yield from (Device(bus, name, driver, module) for name in links if name != "module")


def target(host: Host, link: str) -> str:
    """Return the last part of what a symbolic link names; empty if there is none."""
    try:
        return os.path.basename(os.readlink(host.path(link)))
    except OSError:
        return ""


def is_master(host: Host, device: Device) -> bool:
    """Tell whether a PCI device may write to memory by itself now (bus mastering)."""
    try:
        with host.path(f"{device.path}/config").open("rb") as file:
            header = file.read(_COMMAND + 2)
    except OSError:
        return False
    return bool(int.from_bytes(header[_COMMAND:], "little") & _BUS_MASTER)


def has_iommu(host: Host, device: Device) -> bool:
    """Tell whether an IOMMU stands between a device and memory."""
    return bool(target(host, f"{device.path}/iommu_group"))


def pci_class(host: Host, device: Device) -> int:
    """Return the first byte of a PCI device's class, for example 2 for a network card; 0 if it has none."""
    return int(host.read_or(f"{device.path}/class", "0"), 16) >> 16


def pci_id(host: Host, device: Device) -> str:
    """Return ``vendor:device`` as ``lspci -n`` writes it."""
    read = (host.read_or(f"{device.path}/{name}", "") for name in ("vendor", "device"))
    return ":".join(text.removeprefix("0x") for text in read)


def functions(host: Host, containing: str) -> Mapping[str, frozenset[str]]:
    """Return the kernel's functions with ``containing`` in their name, by module; ``""`` is the kernel itself.

    :raises OSError: if the kernel does not show them
    """
    found: dict[str, set[str]] = {}
    for line in host.read(KALLSYMS).splitlines():
        if containing in line:
            _, kind, name, *module = line.split()
            if kind in "tTwW":
                found.setdefault(module[0].strip("[]") if module else "", set()).add(name)
    return {module: frozenset(names) for module, names in found.items()}


def users(host: Host, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, int, str]]:
    """Yield ``(path, pid, name of the process)`` for open files whose path is wanted.

    :raises PermissionError: without root
    """
    for pid in host.pids():
        paths = {_open_file(host, f"/proc/{pid}/fd/{number}") for number in _fds(host, pid)}
        for path in sorted(filter(is_wanted, paths)):
            yield path, pid, host.read_or(f"/proc/{pid}/comm", "?")


def _fds(host: Host, pid: int) -> list[str]:
    try:
        return os.listdir(host.path(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return []


def _open_file(host: Host, fd: str) -> str:
    try:
        return os.readlink(host.path(fd))
    except (FileNotFoundError, ProcessLookupError):  # it was closed
        return ""


def listed(names: list[str], most: int = 4) -> str:
    """Return names in a line, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
