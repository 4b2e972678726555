# SPDX-License-Identifier: MIT
"""Devices that programs drive by themselves, or share out: GPUs, VFIO, virtual functions, watchdogs."""

from collections.abc import Callable, Iterator

from upgrade.check.devices import hardware
from upgrade.check.devices.hardware import Device
from upgrade.check.model import Finding, passed, warned
from upgrade.check.situation import Situation
from upgrade.host import Host

_GPU_FILES = ("/dev/nvidia", "/dev/dri/", "/dev/kfd", "/dev/accel/", "/dev/habanalabs/")
_VFIO_FILES = ("/dev/vfio/",)

# Between the last time that the old kernel's systemd feeds a watchdog and the first time that the new one's does:
# the standstill, and the boot up to the watchdog's driver. Much more than any boot that was measured.
_UNFED_S = 120


def gpu(situation: Situation) -> Iterator[Finding]:
    """Look for programs that use a GPU or an accelerator."""
    host = situation.host
    kinds = (hardware.DISPLAY, hardware.ACCELERATOR)
    found = [each for each in hardware.bound(host, "pci") if hardware.pci_class(host, each) in kinds]
    if not found and not host.exists("/dev/kfd") and not host.exists("/dev/nvidiactl"):
        yield passed("GPUs and accelerators", "none with a driver", "/sys/bus/pci/devices")
        return
    names = hardware.listed([f"{each.driver} ({each.name})" for each in found]) or "/dev/kfd, /dev/nvidiactl"
    programs = _programs(host, lambda path: path.startswith(_GPU_FILES))
    if programs:
        yield warned(
            names,
            f"is used by {hardware.listed(programs)}",
            source="/proc/*/fd",
            reason="what is in the device is lost; a container among these cannot be dumped without a plugin of CRIU",
            remedy="stop these programs before the upgrade, and do not name their containers",
        )
    else:
        yield passed(names, "no program uses it", "/proc/*/fd")


def vfio(situation: Situation) -> Iterator[Finding]:
    """Look for programs that drive devices by themselves."""
    host = situation.host
    found = [each for each in hardware.bound(host) if "vfio" in each.driver]
    if not found and not host.list("/dev/vfio"):
        yield passed("VFIO", "not used", "/dev/vfio")
        return
    programs = _programs(host, lambda path: path.startswith(_VFIO_FILES))
    names = hardware.listed([f"{each.driver} ({each.name})" for each in found]) or "VFIO"
    if programs:
        yield warned(
            names,
            f"is driven by {hardware.listed(programs)}",
            source="/proc/*/fd",
            reason="virtual machines and programs that drive a device end with this kernel, and nothing tells the "
            "device to stop; CRIU cannot dump them",
            remedy="shut them down before the upgrade",
        )
    else:
        yield passed(names, f"{len(found)} devices are kept for VFIO, no program drives one", "/proc/*/fd")


def sriov(situation: Situation) -> Iterator[Finding]:
    """Look for devices that were divided into virtual ones."""
    host, told = situation.host, False
    for device in hardware.bound(host, "pci"):
        count = int(host.read_or(f"{device.path}/sriov_numvfs", "0") or 0)
        if count:
            told = True
            yield warned(
                f"{device.driver} ({device.name})",
                f"has {count} virtual functions{_taken(host, device)}",
                source=f"{device.path}/sriov_numvfs",
                reason="they vanish with this kernel: what uses them has no device until they are made again",
                remedy="make them at boot (a udev rule that writes sriov_numvfs), and stop what uses them before",
            )
    mediated = host.list("/sys/bus/mdev/devices")
    if mediated:
        told = True
        yield warned(
            hardware.listed(mediated),
            f"{len(mediated)} mediated devices",
            source="/sys/bus/mdev/devices",
            reason="they vanish with this kernel, and so do the virtual machines that use them",
            remedy="define them for good (mdevctl define --auto), and stop what uses them before the upgrade",
        )
    if not told:
        yield passed("virtual functions", "none", "/sys/bus/pci/devices/*/sriov_numvfs")


def watchdog(situation: Situation) -> Iterator[Finding]:
    """Look for hardware that resets the machine if nobody feeds it."""
    host, found = situation.host, []
    for name in host.list("/sys/class/watchdog"):
        base = f"/sys/class/watchdog/{name}"
        seconds = int(host.read_or(f"{base}/timeout", "0"))
        if host.read_or(f"{base}/state", "") != "active":
            continue
        found.append(f"{name}: {seconds} s")
        if seconds < _UNFED_S:
            yield warned(
                f"{host.read_or(f'{base}/identity', name)} ({name})",
                f"resets the machine when it is not fed for {seconds} s",
                source=f"{base}/timeout",
                reason="it may count on during the jump: if the new kernel does not feed it in time, the machine is "
                "reset and the containers are lost",
                remedy=f"give it {_UNFED_S} s or more (RuntimeWatchdogSec= in system.conf), or switch it off for now",
            )
            return
    yield passed("watchdogs", ", ".join(found) or "none runs", "/sys/class/watchdog")


def _programs(host: Host, is_wanted: Callable[[str], bool]) -> list[str]:
    """Return the programs that have wanted files open, each once."""
    return list(dict.fromkeys(f"{name} (PID {pid})" for _, pid, name in hardware.users(host, is_wanted)))


def _taken(host: Host, device: Device) -> str:
    """Return who has the virtual functions."""
    numbers = [name for name in host.list(device.path) if name.startswith("virtfn")]
    virtual = [hardware.target(host, f"{device.path}/{name}") for name in numbers]
    drivers = {hardware.target(host, f"/sys/bus/pci/devices/{name}/driver") for name in virtual} - {""}
    return f", taken by {', '.join(sorted(drivers))}" if drivers else ""
