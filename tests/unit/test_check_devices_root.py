# SPDX-License-Identifier: MIT
"""Tests of devices.root: what the root file system and the state directory lie on."""

import pytest
from builders import devices as fake
from builders.checks import findings, only, situation
from builders.host import Machine

from upgrade.check import blocks
from upgrade.check.devices.crypt import opening
from upgrade.check.devices.root import root
from upgrade.check.model import Status
from upgrade.kexec.filesystems import Mount

PASS, WARN, FAIL = Status.PASS, Status.WARN, Status.FAIL
STATE = "/var/lib/seamless-upgrade"


def encrypted(machine: Machine, *tokens: str, crypttab: str = "") -> None:
    """Put the root file system on an encrypted partition."""
    disk = fake.block(machine, "sda", "8:0")
    fake.partition(machine, "sda2", "8:2", disk)
    fake.mapped(machine, "dm-0", "254:0", "CRYPT-LUKS2-0123-luks", "luks", ["sda2"])
    fake.mounts(machine, ("254:0", "/", "ext4", "/dev/mapper/luks"))
    fake.luks2(machine, "sda2", *tokens)
    if crypttab:
        machine.file("/etc/crypttab", f"# name device key options\n{crypttab}")


# --- what comes back by itself -------------------------------------------------------------------------------------


def test_a_partition(machine: Machine) -> None:
    disk = fake.block(machine, "sda", "8:0")
    fake.partition(machine, "sda1", "8:1", disk)
    fake.mounts(machine, ("8:1", "/", "ext4", "/dev/sda1"), ("0:20", "/proc", "proc", "proc"))
    found = only(root, situation(machine.host), PASS)
    assert (found.subject, found.seen) == ("/", "ext4, on partition sda1, on disk sda")


def test_volumes_on_a_raid(machine: Machine) -> None:
    for name, number in (("sda", "8:0"), ("sdb", "8:16")):
        fake.block(machine, name, number)
    raid = fake.block(machine, "md0", "9:0", "virtual/block")
    machine.file(f"{raid}/md/level", "raid1")
    for name in ("sda", "sdb"):
        fake.link(machine, f"{raid}/slaves/{name}", f"/sys/class/block/{name}")
    fake.mapped(machine, "dm-3", "254:3", "LVM-abcdef", "vg-root", ["md0"])
    fake.mounts(machine, ("254:3", "/", "xfs", "/dev/mapper/vg-root"))
    assert only(root, situation(machine.host), PASS).seen == (
        "xfs, on lvm dm-3, on raid1 md0, on disk sda, on disk sdb"
    )


def test_btrfs_is_found_by_the_name_of_its_device(machine: Machine) -> None:
    fake.block(machine, "vda", "254:0", "pci0000:00/virtio0/block")
    fake.mounts(machine, ("0:31", "/", "btrfs", "/dev/vda"))
    assert only(root, situation(machine.host), PASS).seen == "btrfs, on disk vda"


def test_btrfs_on_a_volume(machine: Machine) -> None:
    fake.block(machine, "sda", "8:0")
    fake.mapped(machine, "dm-1", "254:1", "LVM-x", "vg-root", ["sda"])
    fake.mounts(machine, ("0:31", "/", "btrfs", "/dev/mapper/vg-root"))
    assert only(root, situation(machine.host), PASS).seen == "btrfs, on lvm dm-1, on disk sda"


def test_both_file_systems_are_told(machine: Machine) -> None:
    fake.block(machine, "sda", "8:0")
    fake.block(machine, "sdb", "8:16", "pci0000:00/0000:00:14.0/usb2/2-1/host3/block")
    fake.mounts(machine, ("8:0", "/", "ext4", "/dev/sda"), ("8:16", "/var/lib", "xfs", "/dev/sdb"))
    found = findings(root, situation(machine.host))
    assert [(each.status, each.subject, each.seen) for each in found] == [
        (PASS, "/", "ext4, on disk sda"),
        (PASS, "/var/lib", "xfs, on usb sdb"),
    ]


def test_a_later_mount_hides_an_earlier_one(machine: Machine) -> None:
    fake.block(machine, "sda", "8:0")
    fake.mounts(machine, ("0:2", "/", "rootfs", "rootfs"), ("8:0", "/", "ext4", "/dev/sda"))
    assert only(root, situation(machine.host), PASS).seen == "ext4, on disk sda"


def test_a_mount_point_with_a_space(machine: Machine) -> None:
    fake.mounts(machine, ("8:0", "/", "ext4", "/dev/sda"), ("8:1", "/a\\040b", "xfs", "/dev/sdb"))
    found = blocks.mount_of(machine.host, "/a b/c")
    assert found is not None
    assert found.where == "/a b"
    found = blocks.mount_of(machine.host, "/a bc")
    assert found is not None
    assert found.where == "/"


# --- over a network, in memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "ceph"])
def test_a_file_system_over_a_network(machine: Machine, kind: str) -> None:
    fake.mounts(machine, ("0:40", "/", kind, "server:/root"))
    found = only(root, situation(machine.host), WARN)
    assert (found.subject, found.seen) == ("/", f"lies on {kind}: reached over a network")


@pytest.mark.parametrize(
    ("name", "number", "parent", "expected"),
    [
        ("sdc", "8:32", "platform/host5/session1/target5:0:0/5:0:0:1/block", "sdc, iSCSI"),
        ("nbd0", "43:0", "virtual/block", "nbd0, nbd"),
        ("rbd1", "251:0", "virtual/block", "rbd1, rbd"),
    ],
)
def test_a_disk_over_a_network(machine: Machine, name: str, number: str, parent: str, expected: str) -> None:
    fake.block(machine, name, number, parent)
    fake.mounts(machine, (number, "/", "ext4", f"/dev/{name}"))
    found = only(root, situation(machine.host), WARN)
    assert (found.subject, found.seen) == ("/", f"lies on {expected}: reached over a network")


@pytest.mark.parametrize(("transport", "status"), [("tcp", WARN), ("pcie", PASS)])
def test_nvme_may_be_over_a_network(machine: Machine, transport: str, status: Status) -> None:
    base = fake.block(machine, "nvme0n1", "259:0", "virtual/nvme-fabrics/ctl/nvme0")
    machine.file("/sys/devices/virtual/nvme-fabrics/ctl/nvme0/transport", transport)
    fake.link(machine, f"{base}/device", "/sys/devices/virtual/nvme-fabrics/ctl/nvme0")
    fake.mounts(machine, ("259:0", "/", "ext4", "/dev/nvme0n1"))
    found = only(root, situation(machine.host), status)
    assert ("NVMe over tcp" in found.seen) is (status is WARN)


def test_a_state_directory_in_memory(machine: Machine) -> None:
    fake.block(machine, "sda", "8:0")
    fake.mounts(machine, ("8:0", "/", "ext4", "/dev/sda"), ("0:50", STATE, "tmpfs", "tmpfs"))
    good, bad = findings(root, situation(machine.host))
    assert good.status is PASS
    assert (bad.status, bad.subject, bad.seen) == (WARN, STATE, "is a tmpfs")
    assert bad.remedy == f"mount a disk at {STATE}"


def test_a_disk_in_memory(machine: Machine) -> None:
    fake.block(machine, "pmem0", "259:0", "virtual/block")
    fake.mounts(machine, ("259:0", "/", "ext4", "/dev/pmem0"))
    found = only(root, situation(machine.host), WARN)
    assert (found.subject, found.seen) == ("/", "lies on pmem0, which is memory")


# --- zfs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modules", "status"), [("extra/zfs.ko.xz:", PASS), ("kernel/fs/ext4.ko:", FAIL)])
def test_zfs_needs_its_module(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, modules: str, status: Status
) -> None:
    where = situation(machine.host)
    target = type("Target", (), {"release": "6.18.0"})()
    monkeypatch.setitem(where.__dict__, "target", target)
    machine.file("/lib/modules/6.18.0/modules.dep", modules)
    fake.mounts(machine, ("0:30", "/", "zfs", "rpool/ROOT"))
    found = only(root, where, status)
    assert found.subject == "/"
    assert (
        found.seen
        == {
            PASS: "zfs (rpool/ROOT)",
            FAIL: "is zfs, and 6.18.0 has no module for it",
        }[status]
    )


def test_zfs_without_a_kernel_to_enter(machine: Machine) -> None:
    fake.mounts(machine, ("0:30", "/", "zfs", "rpool/ROOT"))
    only(root, situation(machine.host), PASS)


# --- encrypted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["none", "-", ""])
def test_a_passphrase_that_somebody_types(machine: Machine, key: str) -> None:
    encrypted(machine, crypttab=f"luks UUID=0123 {key}".strip())
    found = only(root, situation(machine.host), FAIL)
    assert found.subject == "/ (luks)"
    assert found.seen == "is encrypted, and somebody has to type the passphrase at boot"
    assert "--skip devices.root" in found.remedy


def test_a_key_file(machine: Machine) -> None:
    encrypted(machine, crypttab="luks UUID=0123 /etc/keys/root.key luks,discard")
    assert (
        only(root, situation(machine.host), PASS).seen
        == "ext4, on crypt dm-0, on partition sda2, on disk sda"
    )


@pytest.mark.parametrize("word", ["rd.luks.key=/keyfile", "cryptkey=rootfs:/keyfile"])
def test_a_key_on_the_command_line(machine: Machine, word: str) -> None:
    encrypted(machine, crypttab="luks UUID=0123 none")
    machine.file("/proc/cmdline", f"root=/dev/mapper/luks {word}")
    only(root, situation(machine.host), PASS)


@pytest.mark.parametrize(
    ("token", "helper"),
    [("systemd-tpm2", "the TPM"), ("clevis", "Clevis"), ("systemd-fido2", "a FIDO2 token")],
)
def test_a_token_in_the_header(machine: Machine, token: str, helper: str) -> None:
    encrypted(machine, "systemd-recovery", token, crypttab="luks UUID=0123 none")
    found = only(root, situation(machine.host), WARN)
    assert (found.subject, found.seen) == ("/ (luks)", f"is encrypted, and opened with {helper}")


@pytest.mark.parametrize(
    ("options", "helper"),
    [("luks,tpm2-device=auto", "the TPM"), ("luks,keyscript=/bin/key", "a key script")],
)
def test_a_helper_in_crypttab(machine: Machine, options: str, helper: str) -> None:
    encrypted(machine, crypttab=f"luks UUID=0123 none {options}")
    assert only(root, situation(machine.host), WARN).seen == f"is encrypted, and opened with {helper}"


def test_an_initrd_with_clevis(machine: Machine) -> None:
    encrypted(machine, crypttab="luks UUID=0123 none")
    machine.file("/usr/bin/clevis-luks-unlock", "")
    assert only(root, situation(machine.host), WARN).seen == "is encrypted, and opened with Clevis"


def test_no_line_in_crypttab(machine: Machine) -> None:
    encrypted(machine, crypttab="swap /dev/sda3 /dev/urandom swap")
    found = only(root, situation(machine.host), WARN)
    assert found.seen == "is encrypted; how it is opened at boot is not in crypttab"


def test_luks1_has_no_tokens(machine: Machine) -> None:
    encrypted(machine, crypttab="luks UUID=0123 none")
    (machine.root / "dev/sda2").write_bytes(b"LUKS\xba\xbe\0\1".ljust(8192, b"\0"))
    only(root, situation(machine.host), FAIL)


@pytest.mark.parametrize("content", [b"", b"XFSB", b"LUKS\xba\xbe\0\2".ljust(8192, b"\xff")])
def test_a_header_that_is_not_understood_refuses_nothing(machine: Machine, content: bytes) -> None:
    encrypted(machine, crypttab="luks UUID=0123 none")
    (machine.root / "dev/sda2").write_bytes(content)
    only(root, situation(machine.host), WARN)


def test_a_device_that_is_not_there_refuses_nothing(machine: Machine) -> None:
    encrypted(machine, crypttab="luks UUID=0123 none")
    (machine.root / "dev/sda2").unlink()
    (layer, *_) = blocks.layers(machine.host, Mount("254:0", "/", "ext4", "/dev/mapper/luks", False))
    found = opening(machine.host, layer)
    assert (found.asks, found.key, found.helper) == (False, "", "")
