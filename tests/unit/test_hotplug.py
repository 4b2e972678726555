# SPDX-License-Identifier: MIT
"""Tests of ``memfs.namespace``, ``memfs.hotplug`` and ``upgrade.ranges`` on a namespace of files."""

import subprocess
from pathlib import Path

import pytest
from builders.nd import BLOCK, Nd
from builders.programs import Programs

from memfs import erofs, hotplug, namespace, prefix, sysfs
from memfs.hotplug import NotOnline, bring_online, online_spans
from memfs.namespace import NamespaceStuck
from memfs.ranges import Range
from memfs.store import ForeignData
from upgrade import ranges
from upgrade.errors import UpgradeError
from upgrade.host import Host

GIB = 1 << 30
SPAN = Range(4 * GIB, GIB)
WHOLE = Range(4 * GIB + BLOCK, GIB - BLOCK)
"""All but the first block, which begins with the dax device's own."""


@pytest.fixture
def nd(tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Nd:
    found = Nd(tmp_path / "machine", SPAN)
    found.ndctl(programs)
    programs.add("modprobe")
    programs.add("blkid", "exit 2")
    found.file(found.root / "proc/cmdline", "memmap=256M!3G,1G!4G quiet")
    monkeypatch.setattr(sysfs, "write", found.write)
    return found


def test_a_namespace_is_found_by_its_address(nd: Nd) -> None:
    found = namespace.find(SPAN, nd.root)
    assert found is not None
    assert found.name == "namespace0.0"
    assert namespace.find(Range(4 * GIB, 2 * GIB), nd.root) is None
    assert namespace.wait(SPAN, 0, nd.root) == found
    with pytest.raises(NamespaceStuck, match=r"1G!5G"):
        namespace.wait(Range(5 * GIB, GIB), 0, nd.root)
    assert (found.holder, found.dax_device, found.driver, found.block_device) == ("", "", "", None)


@pytest.mark.parametrize("before", ["nothing", "held", "raw", "block", "held and raw wanted"])
@pytest.mark.parametrize("raw", [True, False])
def test_whatever_it_was_it_becomes_a_block_device(nd: Nd, before: str, raw: bool) -> None:
    nd.file(nd.info, "")
    if before.startswith("held"):
        nd.hold()
    if before in ("raw", "block"):
        nd.file(nd.space / "force_raw", "1" if before == "raw" else "0")
        nd.bind()
    space = namespace.wait(SPAN, 0, nd.root)
    assert namespace.make_block_device(space, raw=raw, timeout_s=1) == nd.root / "dev/pmem0"
    assert (space.driver, space.holder) == ("nd_pmem", "")
    assert sysfs.read(nd.space / "force_raw") == str(int(raw))


def test_an_info_block_makes_it_no_block_device(nd: Nd) -> None:
    nd.file(nd.info, "dax")
    space = namespace.wait(SPAN, 0, nd.root)
    with pytest.raises(NamespaceStuck, match=r"held by dax0\.0, \[Errno 6\]"):
        namespace.make_block_device(space, raw=False, timeout_s=0.05)
    assert namespace.make_block_device(space, raw=True, timeout_s=1).name == "pmem0"


@pytest.mark.parametrize("before", ["nothing", "raw", "block", "dax", "kmem", "online"])
def test_whatever_it_was_it_becomes_memory(nd: Nd, programs: Programs, before: str) -> None:
    if before in ("raw", "block"):
        nd.file(nd.space / "force_raw", "1" if before == "raw" else "0")
        nd.bind()
    if before in ("dax", "kmem", "online"):
        nd.hold()
    if before in ("kmem", "online"):
        nd.file(nd.memory / "auto_online_blocks", "offline" if before == "kmem" else "online")
        (nd.dax / "drivers/device_dax/dax0.0").unlink()
        nd.add_memory()
    policy = sysfs.read(nd.memory / "auto_online_blocks")
    assert bring_online(SPAN, 1, nd.root) == (WHOLE,)
    assert set(nd.states().values()) == {"online"}
    if before != "online":  # nothing came online that need not be movable
        assert {p.read_text() for p in nd.memory.glob("memory*/by")} == {"us\n"}
    assert sysfs.read(nd.memory / "auto_online_blocks") == policy
    assert len(programs.calls("ndctl")) == (before in ("nothing", "raw", "block"))
    assert bring_online(SPAN, 1, nd.root) == (WHOLE,)


def test_blocks_that_stay_offline_leave_the_others(nd: Nd) -> None:
    nd.refused["memory36/state"] = OSError(22, "Invalid argument")
    parts = bring_online(SPAN, 1, nd.root)
    assert parts == (Range(33 * BLOCK, 3 * BLOCK), Range(37 * BLOCK, 3 * BLOCK))
    nd.refused["/state"] = OSError(22, "Invalid argument")
    for number in nd.states():
        nd.file(nd.memory / f"memory{number}/state", "offline")
    with pytest.raises(NotOnline, match="Invalid argument"):
        bring_online(SPAN, 1, nd.root)


def test_a_range_without_a_whole_block_is_refused(nd: Nd) -> None:
    with pytest.raises(NotOnline, match="no whole memory block of 128 MiB"):
        bring_online(Range(4 * GIB + 1, BLOCK), 1, nd.root)


@pytest.mark.parametrize(
    ("body", "message"),
    [("echo broken >&2; exit 1", "ndctl: broken"), ("echo []", "does not name"), ("echo", "does not name")],
)
def test_what_ndctl_says_is_passed_on(nd: Nd, programs: Programs, body: str, message: str) -> None:
    programs.add("ndctl", body)
    with pytest.raises(NotOnline, match=message):
        bring_online(SPAN, 1, nd.root)


def test_a_missing_ndctl_has_a_remedy(nd: Nd, programs: Programs) -> None:
    (programs.directory / "ndctl").unlink()
    with pytest.raises(NotOnline, match="apt-get install ndctl"):
        bring_online(SPAN, 1, nd.root)


def test_a_kernel_that_refuses_kmem_leaves_the_policy(nd: Nd) -> None:
    nd.refused["kmem/new_id"] = OSError(22, "Invalid argument")
    with pytest.raises(NotOnline, match=r"kmem does not take dax0\.0.*Invalid argument"):
        bring_online(SPAN, 0.05, nd.root)
    assert sysfs.read(nd.memory / "auto_online_blocks") == "online"


def test_online_parts_are_joined(nd: Nd) -> None:
    assert online_spans(SPAN, nd.root) == ()
    for number in (32, 33, 35, 40):  # 40 is behind the range
        nd.file(nd.memory / f"memory{number}/state", "online")
    nd.file(nd.memory / "memory34/state", "going-offline")
    assert online_spans(SPAN, nd.root) == (Range(SPAN.start_bytes, 2 * BLOCK), Range(35 * BLOCK, BLOCK))
    assert hotplug.block_bytes(nd.root / "elsewhere") == BLOCK


def test_the_host_knows_its_ranges(nd: Nd) -> None:
    host = Host(nd.root)
    assert ranges.for_frames(host) == (SPAN,)
    assert ranges.online(host) == ()
    assert ranges.bring_online(host, SPAN) == (WHOLE,)
    assert ranges.online(host) == (SPAN,)


@pytest.fixture
def device(nd: Nd, programs: Programs) -> Path:
    """Return the range's block device; the real blkid looks at it."""
    nd.bind()
    (programs.directory / "blkid").unlink()
    programs.real("blkid")
    found = nd.root / "dev/pmem0"
    with found.open("wb") as f:
        f.truncate(1 << 20)
    return found


def frame_map(path: Path, volume: str) -> None:
    planned = prefix.layout([], 1 << 20, 256)
    with prefix.create(path, planned, 10) as out:
        out.write({}, volume=volume)


def test_a_blank_range_and_an_old_frame_map_are_ours(nd: Nd, device: Path) -> None:
    assert ranges.bring_online(Host(nd.root), SPAN) == (WHOLE,)


def test_an_old_frame_map_is_ours(nd: Nd, device: Path) -> None:
    frame_map(device, ranges.VOLUME)
    assert ranges.bring_online(Host(nd.root), SPAN) == (WHOLE,)


@pytest.mark.parametrize("kind", ["ext4", "partitions", "erofs", "nothing that can be read"])
def test_what_somebody_else_keeps_there_is_left_alone(
    nd: Nd, device: Path, programs: Programs, kind: str
) -> None:
    if kind == "ext4":
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", device], check=True)
    elif kind == "partitions":
        with device.open("r+b") as f:
            f.seek(446)
            f.write(
                bytes([0, 0, 2, 0, 0x83, 0, 3, 0, 1, 0, 0, 0, 64, 0, 0, 0]).ljust(64, b"\0") + b"\x55\xaa"
            )
    elif kind == "erofs":
        frame_map(device, "somebody's")
    else:
        (programs.directory / "blkid").unlink()
        programs.add("blkid", "echo 'blkid: error: Operation not permitted' >&2; exit 2")
    with pytest.raises(ForeignData, match="did not write"):
        ranges.bring_online(Host(nd.root), SPAN)
    assert programs.calls("ndctl") == []


@pytest.mark.parametrize("holder", ["pfn0.1", "btt0.1"])
def test_a_namespace_of_another_mode_is_left_alone(nd: Nd, programs: Programs, holder: str) -> None:
    nd.file(nd.space / "holder", holder)
    with pytest.raises(ForeignData, match=holder):
        ranges.bring_online(Host(nd.root), SPAN)
    assert programs.calls("ndctl") == []


def test_missing_modules_are_an_error(nd: Nd, programs: Programs) -> None:
    programs.add("modprobe", "exit 1")
    with pytest.raises(UpgradeError, match="modprobe"):
        ranges.bring_online(Host(nd.root), SPAN)


def test_the_label_fits_into_the_superblock() -> None:
    layout = erofs.plan([], 2, 100)
    assert ranges.VOLUME.encode() in erofs.write(layout, {}, volume=ranges.VOLUME).block0
