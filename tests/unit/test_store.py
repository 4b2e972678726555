# SPDX-License-Identifier: MIT
"""Tests of ``memfs.store`` on ordinary files: mkfs is real, mounting needs real pmem and is recorded only."""

import os
import subprocess
from pathlib import Path

import pytest
from builders.programs import Programs

from memfs import store

SIZE = 8 << 20


@pytest.fixture
def device(tmp_path: Path, programs: Programs) -> Path:
    programs.real("mkfs.ext4")
    path = tmp_path / "pmem0"
    path.write_bytes(bytes(SIZE))
    return path


def test_a_blank_device_becomes_a_store(device: Path) -> None:
    assert store.is_blank(device)
    assert store.label(device) is None
    store.make(device)
    assert store.label(device) == store.LABEL
    assert not store.is_blank(device)


def test_a_store_has_no_journal_and_is_sound(device: Path) -> None:
    store.make(device)
    shown = subprocess.run(["/usr/sbin/dumpe2fs", "-h", device], capture_output=True, text=True).stdout
    assert "has_journal" not in shown
    assert "Block size:               4096" in shown
    assert "Reserved block count:     0" in shown
    assert subprocess.run(["/usr/sbin/e2fsck", "-fn", device], capture_output=True).returncode == 0


def test_our_own_store_may_be_made_again_and_is_empty_then(device: Path) -> None:
    store.make(device)
    subprocess.run(["/usr/sbin/debugfs", "-w", "-R", "mkdir old", device], capture_output=True, check=True)
    listing = ["/usr/sbin/debugfs", "-R", "ls -p /", str(device)]
    assert b"/old/" in subprocess.run(listing, capture_output=True).stdout
    store.make(device)
    assert b"/old/" not in subprocess.run(listing, capture_output=True).stdout


@pytest.mark.parametrize("offset", [0, 510, 1024, 32 * 1024, 65536 + 64, 128 * 1024 - 1])
def test_what_somebody_else_wrote_is_kept(device: Path, offset: int) -> None:
    content = bytearray(SIZE)
    content[offset] = 1
    device.write_bytes(content)
    with pytest.raises(store.ForeignData, match="did not write"):
        store.make(device)
    assert device.read_bytes() == content


def test_somebody_else_s_ext4_is_kept(device: Path) -> None:
    subprocess.run(["/usr/sbin/mkfs.ext4", "-qF", "-L", "data", device], check=True)
    before = device.read_bytes()
    assert store.label(device) == "data"
    with pytest.raises(store.ForeignData):
        store.make(device)
    assert device.read_bytes() == before


def test_a_longest_label_is_read(device: Path) -> None:
    subprocess.run(["/usr/sbin/mkfs.ext4", "-qF", "-L", "sixteen-letters!", device], check=True)
    assert store.label(device) == "sixteen-letters!"


def test_a_wiped_store_is_blank_and_can_be_made_again(device: Path) -> None:
    store.make(device)
    store.wipe(device)
    assert store.label(device) is None
    assert store.is_blank(device)
    assert device.stat().st_size == SIZE
    store.make(device)
    assert store.label(device) == store.LABEL


def test_the_reason_of_mkfs_is_told(device: Path) -> None:
    os.truncate(device, 4096)
    with pytest.raises(store.StoreFailed, match=r"mkfs\.ext4: .*Not enough space"):
        store.make(device)


def test_looking_at_a_device_changes_nothing(device: Path) -> None:
    store.refuse_foreign(device)
    assert store.is_blank(device)
    store.make(device)
    before = device.read_bytes()
    store.refuse_foreign(device)
    assert device.read_bytes() == before


def test_mounting_asks_for_dax_and_keeps_others_out(tmp_path: Path, programs: Programs) -> None:
    programs.add("mount")
    where = tmp_path / "a" / "b"
    store.mount(tmp_path / "pmem0", where)
    store.mount(tmp_path / "pmem0", where, read_only=True)
    assert where.stat().st_mode & 0o777 == 0o700
    first, second = programs.calls("mount")
    assert first[1:3] == ["-t", "ext4"]
    assert first[-2:] == [str(tmp_path / "pmem0"), str(where)]
    assert "dax=always" in first[4].split(",")
    assert "ro" not in first[4].split(",")
    assert "ro" in second[4].split(",")


def test_the_reason_of_mount_is_told(tmp_path: Path, programs: Programs) -> None:
    programs.add("mount", "echo 'dax unsupported by block device.' >&2; exit 32")
    with pytest.raises(store.StoreFailed, match="mount: dax unsupported by block device"):
        store.mount(tmp_path / "pmem0", tmp_path / "where")


def test_unmounting_what_is_not_mounted_is_nothing(tmp_path: Path, programs: Programs) -> None:
    programs.add("umount")
    store.unmount(tmp_path)
    store.unmount(tmp_path / "missing")
    assert programs.calls() == []


def test_what_is_mounted_is_unmounted(programs: Programs) -> None:
    programs.add("umount", "echo 'target is busy.' >&2; exit 32")
    with pytest.raises(store.StoreFailed, match="target is busy"):
        store.unmount(Path("/proc"))
    assert programs.calls() == [["umount", "/proc"]]


def test_room_is_what_an_ordinary_program_may_still_write(tmp_path: Path) -> None:
    shown = subprocess.run(["/bin/df", "-B1", "--output=avail", tmp_path], capture_output=True, text=True)
    assert abs(store.free_bytes(tmp_path) - int(shown.stdout.split()[1])) < 64 << 20
