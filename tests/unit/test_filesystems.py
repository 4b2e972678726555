# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.filesystems``."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
from builders.host import Machine

from upgrade import linux
from upgrade.host import Host
from upgrade.kexec import filesystems
from upgrade.kexec.filesystems import Mount

MOUNTINFO = r"""
22 29 0:20 / /sys rw,nosuid - sysfs sysfs rw
29 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
30 29 0:24 / /run rw,nosuid shared:2 - tmpfs tmpfs rw,size=1000k
31 29 254:15 / /boot/efi rw,relatime shared:3 master:7 - vfat /dev/vda15 rw
32 29 254:1 /var/lib/docker /srv/with\040space rw,relatime shared:1 - ext4 /dev/vda1 rw
33 29 254:2 / /mnt/read\134only ro,relatime - ext4 /dev/vdb1 ro,norecovery
34 29 7:0 / /mnt/loop rw - ext4 /dev/loop0 rw
35 30 259:0 / /run/seamless-upgrade/memory rw,nodev - ext4 /dev/pmem0 rw,dax=always
36 30 259:0 / /mnt/again rw,nodev - ext4 /dev/pmem0 rw,dax=always
37 29 0:40 / /mnt/nothing rw,relatime - tmpfs  rw
38 29 254:3 / /mnt/bind ro - xfs /dev/vdc rw
39 29 0:45 / /mnt/tab\011new\012line rw - btrfs /dev/vdd rw,subvol=/
""".strip()


def test_every_line_is_read(machine: Machine) -> None:
    machine.file("/proc/self/mountinfo", MOUNTINFO)
    found = {m.where: m for m in filesystems.mounts(machine.host)}
    assert len(found) == 12
    assert found["/"] == Mount("254:1", "/", "ext4", "/dev/vda1", False)
    assert found["/boot/efi"].kind == "vfat"
    assert found["/mnt/read\\only"].read_only
    assert not found["/mnt/bind"].read_only  # the mount is, its file system is not
    assert found["/srv/with space"].device == "254:1"
    assert found["/mnt/tab\tnew\nline"].kind == "btrfs"
    assert found["/mnt/nothing"] == Mount("0:40", "/mnt/nothing", "tmpfs", "", False)


def test_what_looks_like_an_escape_in_a_name_is_none(machine: Machine) -> None:
    machine.file("/proc/self/mountinfo", r"1 0 8:1 / /a\134040b rw - ext4 /dev/sda1 rw")
    assert filesystems.mounts(machine.host)[0].where == r"/a\040b"


def test_what_can_be_written_is_frozen_once_and_the_newest_first(machine: Machine) -> None:
    machine.file("/proc/self/mountinfo", MOUNTINFO)
    store = Path("/run/seamless-upgrade/memory")
    found = [m.where for m in filesystems.writable(machine.host, [store])]
    assert found == ["/mnt/tab\tnew\nline", "/mnt/bind", "/mnt/loop", "/boot/efi", "/"]
    assert len(filesystems.writable(machine.host, [])) == len(found) + 1


def test_the_real_mounts_are_read() -> None:
    found = {m.where: m for m in filesystems.mounts(Host())}
    assert found["/proc"].kind == "proc"
    shown = subprocess.run(
        ["findmnt", "-rno", "TARGET", "--kernel"], capture_output=True, text=True, check=True
    ).stdout
    assert len(filesystems.mounts(Host())) == len(shown.splitlines())


def mount() -> Mount:
    return Mount("8:1", "/", "ext4", "/dev/sda1", False)


def fails_with(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> list[str]:
    """Let a call of ``upgrade.linux`` fail; return the list of what it, and syncfs(2), were called with."""
    calls: list[str] = []

    def fail(where: str) -> None:
        calls.append(where)
        if number:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(linux, name, fail)
    monkeypatch.setattr(linux, "sync_filesystem", lambda where: calls.append(f"sync {where}"))
    return calls


def test_what_is_frozen_needs_no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fails_with(monkeypatch, "freeze_filesystem", 0)
    assert filesystems.freeze(mount())
    assert calls == ["/"]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EBUSY])
def test_what_cannot_be_frozen_is_written_back(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls = fails_with(monkeypatch, "freeze_filesystem", number)
    assert not filesystems.freeze(mount())
    assert calls == ["/", "sync /"]


def test_other_failures_stop_the_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(monkeypatch, "freeze_filesystem", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        filesystems.freeze(mount())


def test_thawing_what_is_not_frozen_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fails_with(monkeypatch, "thaw_filesystem", errno.EINVAL) == []
    filesystems.thaw("/")
    fails_with(monkeypatch, "thaw_filesystem", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        filesystems.thaw("/")


@pytest.mark.skipif(os.geteuid() != 0, reason="FIFREEZE needs root")
def test_the_real_calls_on_a_file_system_that_cannot_be_frozen() -> None:
    assert not filesystems.freeze(Mount("0:1", "/proc", "proc", "proc", False))
    with pytest.raises(OSError):
        filesystems.freeze(Mount("0:1", "/proc/missing", "proc", "proc", False))
