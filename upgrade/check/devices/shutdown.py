# SPDX-License-Identifier: MIT
"""Does somebody tell the devices to stop before the jump?

``kernel_kexec()`` calls the shutdown method of every device's driver (``device_shutdown()``). For each PCI device,
with a method or without, ``pci_device_shutdown()`` then turns bus mastering off. What is left is a device that was
never told to stop: its rings and requests stay, and when the new kernel's driver turns bus mastering on again they may
be written into memory that has a new owner (the message of commit 428c491332bc tells such a case).
"""

from collections.abc import Iterator, Mapping, Sequence

from upgrade.check.devices import hardware, known
from upgrade.check.devices.hardware import Device
from upgrade.check.model import Finding, passed, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.host import Host

_METHOD = "shutdown"
# Told by devices.vfio: who uses them matters, not their driver.
_VFIO = "vfio"


def masters(host: Host) -> list[Device]:
    """Return the PCI devices that may write to memory by themselves; bridges only pass on what others write."""
    return [
        each
        for each in hardware.bound(host, "pci")
        if hardware.pci_class(host, each) != hardware.BRIDGE and hardware.is_master(host, each)
    ]


def shutdown(situation: Situation) -> Iterator[Finding]:
    """Look for drivers of such devices that have no shutdown method."""
    host, devices = situation.host, [each for each in masters(situation.host) if _VFIO not in each.driver]
    if not devices:
        yield passed(
            "devices", "none of those with a driver writes to memory by itself", "/sys/bus/pci/devices"
        )
        return
    try:
        functions = hardware.functions(host, _METHOD)
    except OSError as e:
        raise Unknown(
            f"which drivers have a shutdown method is not known: {hardware.KALLSYMS}: {e.strerror}"
        ) from e
    elsewhere = known.elsewhere()
    answers = {each.driver: _has_method(each, functions, elsewhere) for each in devices}
    for driver in sorted(name for name, has in answers.items() if has is False):
        yield _told(host, [each for each in devices if each.driver == driver])
    good = [each for each in devices if answers[each.driver] is not False]
    unknown = sorted({each.driver for each in good if answers[each.driver] is None})
    if good:
        yield passed(
            "devices",
            f"{len(good)} write to memory by themselves, and their drivers have a shutdown method"
            + (f" (built in, so not known: {', '.join(unknown)})" if unknown else ""),
            hardware.KALLSYMS,
        )


def dma(situation: Situation) -> Iterator[Finding]:
    """Count the devices that no IOMMU keeps out of memory."""
    devices = masters(situation.host)
    free = [each for each in devices if not hardware.has_iommu(situation.host, each)]
    yield passed(
        "devices",
        f"{len(devices)} write to memory by themselves, {len(free)} of them with no IOMMU in between"
        + ("; the kernel turns that off before the jump" if free else ""),
        "/sys/bus/pci/devices/*/iommu_group",
    )


def _has_method(
    device: Device, functions: Mapping[str, frozenset[str]], elsewhere: Mapping[str, Sequence[str]]
) -> bool | None:
    """Tell whether a driver has a shutdown method; None if that is not known.

    Such a method has no fixed name, but its address is in the driver's structure, so that it is always a symbol, and
    by habit "shutdown" is part of it. Functions of the kernel itself do not tell whose they are.
    """
    if device.driver in elsewhere:
        names = {name for found in functions.values() for name in found}
        return True if names & set(elsewhere[device.driver]) else None
    if device.module:
        return bool(functions.get(device.module))
    prefix = device.driver.replace("-", "_")
    return True if any(name.startswith(prefix) for name in functions.get("", ())) else None


def _told(host: Host, devices: list[Device]) -> Finding:
    first = devices[0]
    free = [each for each in devices if not hardware.has_iommu(host, each)]
    return warned(
        f"{first.driver} ({hardware.listed([each.name for each in devices])})",
        f"the module {first.module} has no shutdown method, and bus mastering is on"
        + (", with no IOMMU in between" if free else ""),
        source=hardware.KALLSYMS,
        reason="nothing tells the device to stop; the kernel cuts it off from memory for the jump, but what it has "
        "still to write may go to the new kernel's memory when the new driver lets it write again",
        remedy=f"unload the driver before the upgrade if the host can do without it: modprobe -r {first.module}",
    )
