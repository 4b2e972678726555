# SPDX-License-Identifier: MIT
"""The disk that a machine boots from by itself, as the test of prepare needs it; nothing here boots."""

from dataclasses import replace
from pathlib import Path

import pytest

from upgrade.rehearse import bootable
from upgrade.rehearse.image import Image
from upgrade.rehearse.kernels import Kernel
from upgrade.rehearse.machine import MachineSpec
from upgrade.rehearse.network import Network
from upgrade.rehearse.qemu import Devices, command_line

MIB = 1 << 20
KERNEL = Kernel("6.12.1", Path("/k/vmlinuz"), Path("/k/modules"))
SPEC = MachineSpec(image=Image(Path("/i"), (KERNEL,)), kernel=KERNEL)


def test_a_disk_with_its_own_boot_loader_gets_no_kernel() -> None:
    devices, network = Devices(Path("/d"), Path("/s")), Network("127.0.0.1", "user")
    assert "-kernel" in command_line(SPEC, devices, network, "kvm")
    command = command_line(replace(SPEC, disk=Path("/b.raw")), devices, network, "kvm")
    assert not {"-kernel", "-initrd", "-append"} & set(command)


def test_the_parts_of_a_disk(tmp_path: Path) -> None:
    root, disk = tmp_path / "root.ext4", tmp_path / "disk.raw"
    with root.open("wb") as file:
        file.write(b"begin" * 1000)
        file.seek(40 * MIB)
        file.write(b"middle" * 1000)
        file.truncate(64 * MIB)
    boot, core = bytes(range(1, 252)) * 2, b"core" * 20000
    bootable.assemble(boot, core, root, disk)
    data = disk.read_bytes()
    assert data[: bootable.CODE_BYTES] == boot[: bootable.CODE_BYTES]
    assert data[510:512] == b"\x55\xaa"
    first, count = (int.from_bytes(data[446 + at : 450 + at], "little") for at in (8, 12))
    assert (data[446], data[450]) == (0x80, bootable.LINUX_PARTITION)
    assert (first * 512, count * 512) == (MIB, 64 * MIB)
    assert data[512 : 512 + len(core)] == core
    assert data[MIB:] == root.read_bytes()
    assert disk.stat().st_blocks * 512 < 8 * MIB, "holes stay holes"


def test_a_core_image_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(bytes(512))
    with pytest.raises(ValueError, match="too many"):
        bootable.assemble(b"", bytes(MIB), tmp_path / "root", tmp_path / "disk")
