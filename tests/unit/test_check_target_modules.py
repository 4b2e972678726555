# SPDX-License-Identifier: MIT
"""Tests of ``target.modules`` and ``target.initrd``."""

from pathlib import Path

import pytest
from builders.host import RELEASE as RUNNING
from builders.kernel import RELEASE
from builders.target import ALIASES, INITRD, PID, Target

from upgrade.check.model import Status

BLK = f"usr/lib/modules/{RELEASE}/kernel/drivers/block/virtio_blk.ko.xz"


def test_modules_of_everything_in_use_pass_in_one_line(target: Target) -> None:
    found = target.one("target.modules", Status.PASS)
    assert found.source == str(target.tree)


def test_no_modules_at_all(target: Target) -> None:
    for file in target.tree.glob("modules.*"):
        file.unlink()
    found = target.one("target.modules", Status.FAIL)
    assert found.remedy == f"depmod {RELEASE}"
    target.tree.rename(target.tree.parent / "other")
    found = target.one("target.modules", Status.FAIL)
    assert "not installed" in found.seen
    assert f"linux-image-{RELEASE}" in found.remedy
    target.config("MODULES")
    target.passes("target.modules")


@pytest.mark.parametrize(
    ("module", "subject"), [("virtio_net", "network card eth0"), ("virtio_blk", "disk vda (/)")]
)
def test_a_device_without_its_driver_is_named(target: Target, module: str, subject: str) -> None:
    target.modules(module)
    found = target.one("target.modules", Status.FAIL)
    assert (found.subject, f"module {module} " in found.seen) == (subject, True)


def test_a_driver_under_another_name_will_do(target: Target) -> None:
    target.dep["kernel/drivers/net/virtio_net2.ko"] = []
    target.modules("virtio_net", aliases=ALIASES + "alias virtio:d00000001v* virtio_net2\n")
    target.passes("target.modules")


def test_a_driver_without_a_name_is_not_looked_for(target: Target) -> None:
    device = target.device("pci0/0000:00:09.0", "odd", "pci:v0000ABCD", module=False)
    target.card("eth1", device)
    target.passes("target.modules")


def test_a_driver_that_no_kernel_lists_is_not_looked_for(target: Target) -> None:
    """Sysfs names pcieport a module, but it can be none and is in no modules.builtin."""
    target.device("pci0", "pcieport", "pci:v00001B36")
    target.passes("target.modules")
    target.passes("target.initrd")


def test_a_driver_that_was_built_in_may_be_a_module(target: Target) -> None:
    target.loaded(without="virtio_blk")
    target.modules("virtio_blk")
    target.passes("target.modules")
    target.machine.file(f"/usr/lib/modules/{RUNNING}/modules.dep", "")
    target.machine.file(f"/usr/lib/modules/{RUNNING}/modules.builtin", "kernel/drivers/block/virtio_blk.ko")
    assert target.one("target.modules", Status.FAIL).subject == "disk vda (/)"


def test_a_card_that_is_down_may_stay_away(target: Target) -> None:
    target.card("wlan0", target.device("pci0/0000:00:05.0", "iwlwifi", "pci:v00008086"), "down")
    target.passes("target.modules")
    target.loaded("iwlmvm")
    target.card("wlan1", target.device("pci0/0000:00:06.0", "iwlmvm", "pci:v00008086"), "up")
    assert target.one("target.modules", Status.FAIL).subject == "network card wlan1"


def test_file_systems_count_as_they_are_needed(target: Target) -> None:
    root = ("254:0 / ext4 /dev/vda", "0:9 /run/user tmpfs tmpfs")
    target.mounts(*root, "8:1 /srv xfs /dev/sda1")
    found = target.one("target.modules", Status.WARN)
    assert (found.subject, found.reason) == ("file system xfs", "/srv cannot do without it")
    target.machine.file("/etc/fstab", "UUID=1 / ext4 defaults 0 1\nUUID=2 /srv xfs nofail 0 2")
    target.one("target.modules", Status.WARN)
    target.machine.file("/etc/fstab", "# a comment\nUUID=2 /srv xfs noatime 0 2")
    target.one("target.modules", Status.FAIL)


def test_file_systems_of_a_container_are_needed(target: Target) -> None:
    target.mounts("254:0 / ext4 /dev/vda", "8:1 /srv xfs /dev/sda1")
    target.runc("web", PID + 1, namespaces={"mnt": 99})
    target.mounts("8:1 / xfs /dev/sda1", pid=PID + 1)
    assert target.one("target.modules", Status.FAIL, containers=("web",)).subject == "file system xfs"
    target.one("target.modules", Status.WARN)


def test_an_overlay_that_the_host_does_not_see_is_found(target: Target) -> None:
    target.runc("web", PID + 1, namespaces={"mnt": 99})
    target.mounts("0:50 / overlay overlay", pid=PID + 1)
    target.passes("target.modules", containers=("web",))
    target.modules("overlay")
    found = target.one("target.modules", Status.FAIL, containers=("web",))
    assert (found.subject, found.reason) == ("file system overlay", "web cannot do without it")
    target.passes("target.modules")


@pytest.mark.parametrize(
    ("kind", "source"),
    [("zfs", "pool/data"), ("nfs4", "10.0.0.1:/data"), ("fuse.sshfs", "host:"), ("fuseblk", "/dev/sdb1")],
)
def test_other_file_systems_are_found(target: Target, kind: str, source: str) -> None:
    target.mounts("254:0 / ext4 /dev/vda", f"0:60 /data {kind} {source}")
    found = target.one("target.modules", Status.WARN)
    assert found.subject == f"file system {kind}"
    target.modules(aliases=ALIASES + f"alias fs-{kind.partition('.')[0]} virtio_net\n")
    target.passes("target.modules")


def test_what_a_disk_is_made_of_is_needed(target: Target) -> None:
    virtual = target.machine.root / "sys/devices/virtual"
    disk = target.disk("dm-0", virtual, "253:0", slaves=["md0"])
    (disk / "dm").mkdir()
    (disk / "dm/uuid").write_text("CRYPT-LUKS2-0123-root\n")
    target.disk("vdb", virtual, "254:16")
    array = target.disk("md0", virtual, "9:0", slaves=["vdb"])
    (array / "md").mkdir()
    (array / "md/level").write_text("raid6\n")
    (disk / "slaves/md0").unlink()
    (disk / "slaves/md0").symlink_to(array)
    target.mounts("253:0 / ext4 /dev/mapper/root")
    found = target.found("target.modules")
    assert {each.status for each in found} == {Status.FAIL}
    names = {"dm_crypt", "dm_mod", "md_mod", "raid456"}
    assert {name for name in names for each in found if f"module {name} " in each.seen} == names
    target.dep |= {f"kernel/drivers/md/{name}.ko": [] for name in ("dm-mod", "md-mod", "raid456")}
    target.dep["kernel/drivers/md/dm-crypt.ko"] = ["kernel/drivers/md/dm-mod.ko"]
    target.modules()
    target.passes("target.modules")
    lacking = {each.seen for each in target.found("target.initrd")}
    assert "lacks the module dm_crypt, dm_mod" in lacking
    assert "lacks the module raid456" in lacking


def test_packet_filters_and_foreign_modules_are_warned_of(target: Target) -> None:
    target.loaded("nf_conntrack_sip", "snd_hda", "nvidia")
    target.machine.file("/sys/module/nvidia/taint", "PO")
    target.machine.file("/sys/module/snd_hda/taint", "")
    network, foreign = target.found("target.modules")
    assert (network.status, network.seen.endswith(": nf_conntrack_sip")) == (Status.WARN, True)
    assert (foreign.status, foreign.seen.endswith(": nvidia")) == (Status.WARN, True)


def test_an_initrd_with_what_the_root_needs_passes(target: Target) -> None:
    found = target.one("target.initrd", Status.PASS)
    assert (found.subject, "5 files, 1 modules" in found.seen) == (str(target.initrd), True)


@pytest.mark.parametrize(
    ("without", "seen", "status"),
    [
        ("init", "has no /init", Status.FAIL),
        ("usr/bin/sh", "has no /bin/sh", Status.FAIL),
        ("usr/bin/mount", "has no mount", Status.WARN),
        (BLK, "lacks the module virtio_blk", Status.FAIL),
    ],
)
def test_what_an_initrd_lacks_is_named(target: Target, without: str, seen: str, status: Status) -> None:
    target.archive([name for name in INITRD if name != without])
    assert target.one("target.initrd", status).seen == seen


def test_programs_are_looked_for_where_they_may_be(target: Target) -> None:
    target.archive(["init", "bin/sh", "sbin/mount", BLK])
    target.passes("target.initrd")


def test_the_first_program_may_have_another_name(target: Target) -> None:
    target.machine.file("/proc/cmdline", "root=/dev/vda1 rdinit=/start")
    assert target.one("target.initrd", Status.FAIL).seen == "has no /start"
    target.archive([*INITRD, "start"])
    target.passes("target.initrd")


def test_an_initrd_of_another_kernel_is_refused(target: Target) -> None:
    target.archive([name.replace(RELEASE, "6.1.0-1-amd64") for name in INITRD])
    found = target.one("target.initrd", Status.FAIL)
    assert "6.1.0-1-amd64" in found.seen
    assert RELEASE in found.remedy


def test_what_a_module_needs_has_to_be_there_too(target: Target) -> None:
    target.dep["kernel/drivers/block/virtio_blk.ko.xz"] = ["kernel/lib/sg_pool.ko"]
    target.dep["kernel/lib/sg_pool.ko"] = []
    target.modules()
    assert target.one("target.initrd", Status.FAIL).seen == "lacks the module sg_pool"
    target.archive([*INITRD, f"lib/modules/{RELEASE}/kernel/lib/sg_pool.ko"])
    target.passes("target.initrd")


def test_the_file_system_of_the_root_has_to_be_there(target: Target) -> None:
    target.mounts("254:0 / xfs /dev/vda")
    target.dep["kernel/fs/xfs/xfs.ko"] = []
    target.modules()
    assert target.one("target.initrd", Status.FAIL).seen == "lacks the module xfs"
    target.archive([*INITRD, f"lib/modules/{RELEASE}/kernel/fs/xfs/xfs.ko.zst"])
    target.passes("target.initrd")


def test_a_root_on_the_network_is_not_looked_at(target: Target) -> None:
    target.archive([name for name in INITRD if name != BLK])
    target.mounts("0:40 / nfs4 10.0.0.1:/root")
    target.passes("target.initrd")


def test_a_damaged_initrd_is_warned_of_and_looked_at(target: Target) -> None:
    target.initrd.write_bytes(target.initrd.read_bytes() + b"garbage")
    assert "unknown data" in target.one("target.initrd", Status.WARN).seen
    target.initrd.write_bytes(b"garbage, nothing else")
    found = target.found("target.initrd")
    assert "has no /init" in {each.seen for each in found if each.status is Status.FAIL}


def test_without_the_program_for_its_compression_it_is_not_known(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("upgrade.process.PATH", str(tmp_path))
    target.initrd.write_bytes(bytes.fromhex("28b52ffd 2400 010000 99e9d851"))  # zstd of nothing
    found = target.one("target.initrd", Status.SKIP)
    assert (found.remedy, "zstd" in found.seen) == ("apt-get install zstd", True)


def test_without_installed_modules_the_root_is_not_known(target: Target) -> None:
    (target.tree / "modules.dep").unlink()
    skipped, whole = target.found("target.initrd")
    assert (skipped.status, whole.status) == (Status.SKIP, Status.PASS)
