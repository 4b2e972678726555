# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.modules``."""

import pytest
from builders.host import Machine

from upgrade.kexec import modules
from upgrade.kexec.modules import Modules

BASE = "/usr/lib/modules/6.12.1"
DEP = """kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/fs/netfs/netfs.ko.xz:
kernel/crypto/crc32c-generic.ko:
updates/dkms/zfs.ko.zst:"""
ALIAS = """# Aliases extracted from modules themselves.
alias fs-erofs erofs
alias pci:v00008086d0000100[EF]sv*sd*bc*sc*i* e1000
alias virtio:d00000001v* virtio_net
alias dmi*:[bs]vnACME*:* acme-wmi"""


@pytest.fixture
def found(machine: Machine) -> Modules:
    machine.file(f"{BASE}/modules.dep", DEP)
    for line in DEP.splitlines():
        machine.file(f"{BASE}/{line.partition(':')[0]}", "module")
    machine.file(f"{BASE}/modules.alias", ALIAS)
    machine.file(f"{BASE}/modules.builtin", "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-pci.ko")
    file = machine.file(f"{BASE}/modules.builtin.modinfo", "")
    file.write_bytes(
        b"ext4.alias=fs-ext4\0ext4.alias=fs-ext3\0ext4.license=GPL\0virtio_pci.alias=pci:v00001AF4d*\0"
    )
    loaded = modules.load(machine.host, "6.12.1")
    assert loaded
    return loaded


@pytest.mark.parametrize(
    "name", ["erofs", "crc32c_generic", "crc32c-generic", "zfs", "ext4", "virtio_pci", "virtio-pci"]
)
def test_what_is_there_is_known_by_either_name(found: Modules, name: str) -> None:
    assert found.has(name)


def test_what_is_not_there_is_not(found: Modules) -> None:
    assert not found.has("xfs")
    assert not found.has("")
    (found.directory / "kernel/fs/erofs/erofs.ko.xz").unlink()
    assert not found.has("erofs")


def test_a_module_needs_others(found: Modules) -> None:
    assert found.with_needs("erofs") == ["erofs", "libcrc32c", "netfs"]
    assert found.with_needs("xfs") == ["xfs"]


@pytest.mark.parametrize(
    ("alias", "names"),
    [
        ("fs-erofs", ["erofs"]),
        ("fs-ext3", ["ext4"]),
        ("fs-xfs", []),
        ("fs-erof", []),
        ("virtio:d00000001v00001AF4", ["virtio_net"]),
        ("virtio:d00000002v00001AF4", []),
        ("pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00", ["e1000"]),
        ("pci:v00008086d0000100Dsv00001AF4sd00001100bc02sc00i00", []),
        ("pci:v00001AF4d00001000sv0sd0", ["virtio_pci"]),
        ("dmi:bvnACME:br1", ["acme_wmi"]),
    ],
)
def test_modules_answer_to_aliases(found: Modules, alias: str, names: list[str]) -> None:
    assert found.for_alias(alias) == names


def test_a_device_is_driven_only_by_what_is_there(found: Modules) -> None:
    assert found.drives(["pci:v00001AF4d00001000sv0sd0"])
    assert not found.drives(["virtio:d00000001v00001AF4"])  # the alias is known, the module is gone


def test_without_depmod_nothing_is_known(machine: Machine) -> None:
    assert modules.load(machine.host, "6.12.1") is None
    machine.file(f"{BASE}/kernel/fs/erofs/erofs.ko", "module")
    assert modules.load(machine.host, "6.12.1") is None


def test_the_old_place_is_looked_at_too(machine: Machine) -> None:
    machine.file("/lib/modules/6.12.1/modules.dep", "kernel/a.ko:")
    machine.file("/lib/modules/6.12.1/kernel/a.ko", "module")
    found = modules.load(machine.host, "6.12.1")
    assert found
    assert found.has("a")
