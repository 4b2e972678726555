# SPDX-License-Identifier: MIT
"""Devices made of files: drivers on buses, open files, block devices and network links."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from builders.host import Machine

BUS_MASTER = 0x4
IO_AND_MEMORY = 0x3


def link(machine: Machine, path: str, to: str) -> None:
    """Make a symbolic link; ``to`` may be absolute, as seen on the machine."""
    file = machine.root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(machine.root / to.lstrip("/"), file.parent) if to.startswith("/") else to
    file.symlink_to(target)


def directory(machine: Machine, path: str) -> Path:
    """Make a directory."""
    made = machine.root / path.lstrip("/")
    made.mkdir(parents=True, exist_ok=True)
    return made


def device(machine: Machine, bus: str, name: str, driver: str, module: str | None = None) -> str:
    """Bind a device to a driver, and return its path; the driver is built in if ``module`` is None."""
    base, of_driver = f"/sys/bus/{bus}/devices/{name}", f"/sys/bus/{bus}/drivers/{driver}"
    directory(machine, base)
    link(machine, f"{base}/driver", of_driver)
    link(machine, f"{of_driver}/{name}", base)
    machine.file(f"{of_driver}/bind", "")
    if module is not None and not machine.host.exists(f"{of_driver}/module"):
        machine.file(f"/sys/module/{module}/initstate", "live")
        link(machine, f"{of_driver}/module", f"/sys/module/{module}")
    return base


def pci(
    machine: Machine,
    name: str,
    driver: str,
    module: str | None = None,
    *,
    kind: int = 0x020000,
    id: str = "8086:1234",
    command: int = BUS_MASTER | IO_AND_MEMORY,
    iommu: bool = False,
) -> str:
    """Bind a PCI device to a driver, and return its path; ``command`` is its register of that name."""
    base = device(machine, "pci", name, driver, module)
    vendor, number = id.split(":")
    machine.file(f"{base}/vendor", f"0x{vendor}")
    machine.file(f"{base}/device", f"0x{number}")
    machine.file(f"{base}/class", f"{kind:#08x}")
    header = b"\x86\x80\x34\x12" + command.to_bytes(2, "little") + bytes(58)
    (machine.root / base.lstrip("/") / "config").write_bytes(header)
    if iommu:
        link(machine, f"{base}/iommu_group", "/sys/kernel/iommu_groups/7")
    return base


def functions(machine: Machine, *names: str) -> None:
    """Show functions of the kernel (``ena_shutdown [ena]`` for those of a module)."""
    lines = [f"0000000000000000 t {' '.join(name.split()).replace(' ', chr(9))}" for name in names]
    machine.file("/proc/kallsyms", "\n".join(["0000000000000000 T _text", *lines]))


def open_file(machine: Machine, pid: int, path: str, name: str = "task") -> None:
    """Let a process have a file open."""
    machine.file(f"/proc/{pid}/comm", name)
    number = len(list(directory(machine, f"/proc/{pid}/fd").iterdir()))
    (machine.root / f"proc/{pid}/fd/{number}").symlink_to(path)


def block(
    machine: Machine, name: str, number: str, parent: str = "pci0000:00/0000:00:04.0/host0/block"
) -> str:
    """Make a block device, and return its path; ``parent`` is below ``/sys/devices``."""
    base = f"/sys/devices/{parent}/{name}"
    directory(machine, base)
    link(machine, f"/sys/class/block/{name}", base)
    link(machine, f"/sys/dev/block/{number}", base)
    return base


def partition(machine: Machine, name: str, number: str, disk: str) -> str:
    """Make a partition of a disk whose path is given, and return its path."""
    base = block(machine, name, number, disk.removeprefix("/sys/devices/"))
    machine.file(f"{base}/partition", "1")
    return base


def mapped(machine: Machine, name: str, number: str, uuid: str, label: str, below: Iterable[str]) -> str:
    """Make a device-mapper device that is made of others, and return its path."""
    base = block(machine, name, number, "virtual/block")
    machine.file(f"{base}/dm/uuid", uuid)
    machine.file(f"{base}/dm/name", label)
    for each in below:
        link(machine, f"{base}/slaves/{each}", f"/sys/class/block/{each}")
    return base


def mounts(machine: Machine, *lines: tuple[str, str, str, str]) -> None:
    """Mount file systems: ``(number, point, kind, source)``."""
    text = [
        f"{30 + index} 1 {number} / {point} rw,relatime shared:1 - {kind} {source} rw"
        for index, (number, point, kind, source) in enumerate(lines)
    ]
    machine.file("/proc/self/mountinfo", "\n".join(text))


def luks2(machine: Machine, device: str, *tokens: str) -> None:
    """Write a LUKS2 header with tokens of some kinds."""
    text = json.dumps({"tokens": {str(n): {"type": kind} for n, kind in enumerate(tokens)}}).encode()
    header = b"LUKS\xba\xbe\0\2" + (16384).to_bytes(8, "big")
    file = directory(machine, "/dev") / device
    file.write_bytes(header.ljust(4096, b"\0") + text.ljust(12288, b"\0"))


def net(machine: Machine, name: str, *, card: bool = False, devtype: str = "", **files: str) -> str:
    """Make a network link, and return its path."""
    base = f"/sys/class/net/{name}"
    machine.file(f"{base}/uevent", f"DEVTYPE={devtype}\nINTERFACE={name}" if devtype else f"INTERFACE={name}")
    machine.file(f"{base}/type", files.pop("type", "1"))
    for file, text in files.items():
        machine.file(f"{base}/{file}", text)
    if card:
        link(machine, f"{base}/device", "/sys/devices/pci0000:00/0000:00:03.0")
        directory(machine, "/sys/devices/pci0000:00/0000:00:03.0")
    return base
