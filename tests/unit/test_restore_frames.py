# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.frames`` and ``upgrade.cli.frames``: files for devices, real bind mounts."""

import argparse
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from builders.nd import BLOCK, Nd
from builders.programs import Programs
from builders.session import dumped, session

from memfs import checksums, prefix, samples, sysfs
from memfs.ranges import Range
from upgrade import linux, paths
from upgrade.cli import frames as command
from upgrade.errors import ExitStatus, Refusal, UpgradeError
from upgrade.host import Host
from upgrade.restore.frames import FrameMount, give_back, hold_back, mount, show
from upgrade.session import FRAMES_FILE, SAMPLES_FILE, FrameRecord

GIB = 1 << 30
SPAN = Range(4 * GIB, GIB)
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount")


@pytest.fixture
def nd(tmp_path: Path, programs: Programs, here: Path, monkeypatch: pytest.MonkeyPatch) -> Nd:
    """Return a namespace as the new kernel shows it: its info block makes it a dax device, unless it is raw."""
    found = Nd(tmp_path / "machine", SPAN, info="dax")
    found.ndctl(programs)
    for name in ("modprobe", "mount", "umount"):
        programs.add(name)
    programs.add("blkid", "exit 2")
    found.file(found.root / "proc/cmdline", "memmap=256M!3G,1G!4G quiet")
    found.file(found.root / "sys/block/pmem0/queue/dax", "1")
    found.file(found.root / "proc/mounts", f"/dev/pmem0 {paths.FRAMES} erofs ro,relatime,dax=always 0 0")
    (found.root / "dev/pmem0").write_bytes(bytes(4096) + b"info".ljust(4096, b"\0") + bytes(2 << 20))

    def write(attribute: Path, text: str) -> None:
        if (found.root / "dev/pmem0").read_bytes()[4096:8192] == bytes(4096):
            found.file(found.info, "")  # the info block was written over
        found.write(attribute, text)

    monkeypatch.setattr(sysfs, "write", write)
    return found


@pytest.fixture
def record(nd: Nd) -> FrameRecord:
    """Return the record of a map that lies on range M."""
    planned = prefix.layout([], 1 << 20, SPAN.size_bytes // 4096)
    with prefix.create(paths.STORE / FRAMES_FILE, planned, 3) as out:
        out.write({}, volume="seamless-frames")
    samples.save({}, paths.STORE / SAMPLES_FILE)
    files = (checksums.of_file(paths.STORE / name) for name in (FRAMES_FILE, SAMPLES_FILE))
    return FrameRecord((SPAN,), *files)


def test_the_map_goes_to_the_start_of_its_range(nd: Nd, programs: Programs, record: FrameRecord) -> None:
    nd.hold()
    mount(Host(nd.root), record)
    data = (paths.STORE / FRAMES_FILE).read_bytes()
    assert (nd.root / "dev/pmem0").read_bytes()[: len(data)] == data
    assert sysfs.read(nd.space / "force_raw") == "0"
    (called,) = programs.calls("mount")
    assert called == [
        "mount",
        "-t",
        "erofs",
        "-o",
        "ro,dax=always",
        str(nd.root / "dev/pmem0"),
        str(paths.FRAMES),
    ]


def test_a_damaged_map_is_written_nowhere(nd: Nd, programs: Programs, record: FrameRecord) -> None:
    with (paths.STORE / FRAMES_FILE).open("r+b") as f:
        f.seek(5000)
        f.write(b"x")
    before = (nd.root / "dev/pmem0").read_bytes()
    with pytest.raises(UpgradeError, match="checksum"):
        mount(Host(nd.root), record)
    assert (nd.root / "dev/pmem0").read_bytes() == before
    assert programs.calls("mount") == []


def test_frames_are_not_read_through_a_cache(nd: Nd, programs: Programs, record: FrameRecord) -> None:
    nd.file(nd.root / "proc/mounts", f"/dev/pmem0 {paths.FRAMES} erofs ro,relatime 0 0")
    with pytest.raises(UpgradeError, match="without DAX"):
        mount(Host(nd.root), record)
    assert programs.calls("umount") == [["umount", str(paths.FRAMES)]]
    nd.file(nd.root / "sys/block/pmem0/queue/dax", "0")
    with pytest.raises(UpgradeError, match="no DAX"):
        mount(Host(nd.root), record)
    assert len(programs.calls("mount")) == 1


def test_frames_that_are_mounted_already_stay_so(
    nd: Nd, programs: Programs, record: FrameRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a restore process that died."""
    monkeypatch.setattr("os.path.ismount", lambda path: path == paths.FRAMES)
    before = (nd.root / "dev/pmem0").read_bytes()
    mount(Host(nd.root), record)
    assert programs.calls() == []
    assert (nd.root / "dev/pmem0").read_bytes() == before


def test_ranges_are_held_back_from_being_dax_devices(nd: Nd) -> None:
    hold_back(Host(nd.root), (SPAN, Range(8 * GIB, GIB)))
    assert sysfs.read(nd.space / "force_raw") == "1"
    nd.file(nd.space / "force_raw", "0")
    nd.bind()
    hold_back(Host(nd.root), (SPAN,))  # too late: left as it is
    assert sysfs.read(nd.space / "force_raw") == "0"


@pytest.fixture
def mounts() -> Iterator[None]:
    """Unmount what a test has left below its directory."""
    yield
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        if line.split()[1].startswith(str(paths.RUNTIME)):
            linux.unmount(line.split()[1])


@NEEDS_ROOT
def test_images_are_the_files_of_the_map_until_they_are_given_back(
    nd: Nd, programs: Programs, mounts: None
) -> None:
    (programs.directory / "umount").unlink()
    programs.real("umount")
    containers = [
        replace(dumped(number=n), frame_files=("pages-1.img", f"pages-{n + 2}.img")) for n in range(2)
    ]
    paths.FRAMES.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "tmpfs", paths.FRAMES], check=True)
    for number, container in enumerate(containers):
        (paths.STORE / container.directory).mkdir()
        for name in container.frame_files:
            (paths.FRAMES / f"{number}-{name}").write_text(f"{number} {name}")
        show(number, container)
        show(number, container)  # by a restore process that died, and by the next one
    host = Host(nd.root)
    for number, container in enumerate(containers):
        for name in container.frame_files:
            assert (paths.STORE / container.directory / name).read_text() == f"{number} {name}"
    with (paths.STORE / containers[0].directory / "pages-2.img").open():  # somebody reads it yet
        (problem,) = give_back(host, containers)
        assert "frames stay mounted" in problem
        assert nd.states() == {}
    assert give_back(host, containers) == []
    assert [p for p in paths.STORE.rglob("pages-*") if p.read_text()] == []
    assert not paths.FRAMES.exists()
    assert set(nd.states().values()) == {"online"}


def test_what_keeps_the_frames_from_being_mounted_is_said_to_all_who_wait(
    nd: Nd, record: FrameRecord
) -> None:
    (paths.STORE / FRAMES_FILE).write_bytes(b"")
    frame_mount = FrameMount(Host(nd.root), session(), record)
    frame_mount.start()
    for _ in range(2):
        with pytest.raises(UpgradeError, match="damaged"):
            frame_mount.wait()


def test_a_range_that_cannot_come_online_keeps_no_other(nd: Nd, quick: None) -> None:
    nd.file(nd.root / "proc/cmdline", "memmap=256M!3G,512M!3584M,1G!4G")
    problems = give_back(Host(nd.root))
    assert [p.split(" is ")[0] for p in problems] == ["memmap=512M!3584M"]
    assert set(nd.states().values()) == {"online"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upgrade.ranges.TIMEOUT_S", 0.05)


def run(nd: Nd, monkeypatch: pytest.MonkeyPatch) -> ExitStatus:
    monkeypatch.setattr(command, "Host", lambda: Host(nd.root))
    return ExitStatus(command.main(argparse.Namespace()))


def test_the_command_brings_every_range_online(
    nd: Nd, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(nd, monkeypatch) is ExitStatus.DONE
    assert "memmap=1G!4G: 896 MiB online" in capsys.readouterr().err
    nd.file(nd.root / "proc/cmdline", "memmap=256M!3G,512M!3584M,1G!4G")
    assert run(nd, monkeypatch) is ExitStatus.FAILED
    said = capsys.readouterr().err
    assert "memmap=512M!3584M: no namespace" in said
    assert "896 MiB online" in said


def test_the_command_names_a_missing_program(
    nd: Nd,
    quick: None,
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (programs.directory / "modprobe").unlink()
    assert run(nd, monkeypatch) is ExitStatus.FAILED
    assert "modprobe" in capsys.readouterr().err


def test_the_command_leaves_frames_alone_that_wait_for_their_restore(
    nd: Nd, monkeypatch: pytest.MonkeyPatch
) -> None:
    nd.file(nd.root / "proc/cmdline", "memmap=256M!3G,1G!4G seamless_upgrade.session=20260101T000000Z-aaaaaa")
    paths.PLAN.write_text("{}")
    with pytest.raises(Refusal, match="20260101T000000Z-aaaaaa"):
        run(nd, monkeypatch)
    assert nd.states() == {}
    paths.PLAN.unlink()
    assert run(nd, monkeypatch) is ExitStatus.DONE
    assert len(nd.states()) == SPAN.size_bytes // BLOCK - 1
