# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.plan``: what is planned, and every refusal with its exit status and remedy."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from builders.criu import FakeCriu
from builders.host import Machine
from builders.kernel import RELEASE, bzimage, vmlinux
from builders.programs import Programs
from builders.vdso import VdsoBuilder

from memfs.ranges import Range
from upgrade import budget, paths, plan
from upgrade.config import Config
from upgrade.engines.base import Container
from upgrade.errors import DependencyMissing, ExitStatus, Refusal, UpgradeError, UsageError
from upgrade.kexec.cmdline import session_of
from upgrade.request import Request

MIB = 1 << 20
STORE = Range(4 << 30, 256 * MIB)
IOMEM = "100000000-10fffffff : Persistent Memory (legacy)\n  100000000-10fffffff : namespace0.0"


class Scene:
    """A host on which an upgrade is possible; each test breaks one thing."""

    def __init__(self, machine: Machine, programs: Programs, tmp_path: Path) -> None:
        self.machine = machine
        self.boot = tmp_path / "boot"
        self.boot.mkdir()
        self.kernel = self.boot / f"vmlinuz-{RELEASE}"
        self.kernel.write_bytes(bzimage(gzip.compress(vmlinux([VdsoBuilder().build()]))))
        self.initrd = self.boot / f"initrd.img-{RELEASE}"
        self.initrd.write_bytes(b"initrd")
        for program in plan.PROGRAMS:
            if not (programs.directory / program).exists():
                programs.add(program)
        machine.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 memmap=256M!4G")
        machine.file("/proc/iomem", IOMEM)
        for name in ("maps", "mem"):
            os.symlink(f"/proc/self/{name}", machine.root / "proc/self" / name)
        self.workload("/workload/redis", 500)

    def workload(self, name: str, pid: int, anon: int = 10 * MIB, **stat: int) -> None:
        self.machine.cgroup(name, [pid])
        self.machine.process(pid)
        lines = [f"anon {anon}", *(f"{key} {value}" for key, value in stat.items())]
        self.machine.file(f"/sys/fs/cgroup{name}/memory.stat", "\n".join(lines))

    def make(self, **options: Any) -> plan.Plan:
        request = Request(**{"kernel": str(self.kernel), "cgroups": ("/workload/redis",), **options})
        return plan.make(self.machine.host, request, Config())

    def refused(self, kind: type[UpgradeError] = Refusal, **options: Any) -> UpgradeError:
        with pytest.raises(kind) as caught:
            self.make(**options)
        assert caught.value.hint
        return caught.value


@pytest.fixture
def scene(
    machine: Machine, criu: FakeCriu, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return Scene(machine, programs, tmp_path)


def test_a_plan_is_everything_that_will_happen(scene: Scene) -> None:
    found = scene.make(append="debug")
    assert (found.kernel, found.initrd, found.kernel_to) == (scene.kernel, scene.initrd, RELEASE)
    assert found.store == STORE
    assert [c.name for c in found.containers] == ["/workload/redis"]
    assert str(found.criu_version) == "4.1.1"
    assert found.memory_bytes == 10 * MIB
    assert found.command_line.split()[:3] == ["root=/dev/vda1", "memmap=256M!4G", "debug"]
    assert session_of(found.command_line)
    assert found.vdso["target"]["release"] == RELEASE
    assert found.warnings == ()
    json.dumps(dict(found.vdso))


def test_planning_changes_nothing(scene: Scene, programs: Programs) -> None:
    scene.make()
    assert programs.calls() == []
    assert scene.machine.writes == []


def test_only_root_may(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert scene.refused(UpgradeError).status == ExitStatus.NOT_PRIVILEGED


@pytest.mark.parametrize("program", plan.PROGRAMS)
def test_every_program_is_missed_by_name(scene: Scene, programs: Programs, program: str) -> None:
    (programs.directory / program).unlink()
    error = scene.refused(DependencyMissing)
    assert (error.subject, error.status) == (program, ExitStatus.DEPENDENCY_MISSING)


def test_a_criu_that_does_not_work_is_an_error_for_users(scene: Scene, criu: FakeCriu) -> None:
    criu.dies_at_once()
    with pytest.raises(UpgradeError, match="status 7"):
        scene.make()


def test_files_that_do_not_exist_are_wrong_usage(scene: Scene) -> None:
    for options in (
        {"kernel": "/nowhere/vmlinuz"},
        {"initrd": "/nowhere/initrd"},
        {"kernel": str(scene.boot)},
    ):
        assert scene.refused(UsageError, **options).status == ExitStatus.USAGE


def test_what_is_no_kernel_is_refused(scene: Scene) -> None:
    scene.kernel.write_bytes(b"#!/bin/sh\n" * 1000)
    assert scene.refused().subject == str(scene.kernel)


def test_the_initrd_is_the_one_of_the_kernel(scene: Scene, tmp_path: Path) -> None:
    (scene.boot / "initrd.img").write_bytes(b"another")
    assert scene.make().initrd == scene.initrd
    scene.initrd.rename(scene.boot / f"initramfs-{RELEASE}.img")
    assert scene.make().initrd.name == f"initramfs-{RELEASE}.img"
    (scene.boot / f"initramfs-{RELEASE}.img").unlink()
    assert scene.make().initrd.name == "initrd.img"
    other = tmp_path / "mine"
    other.write_bytes(b"mine")
    assert scene.make(initrd=str(other)).initrd == other
    (scene.boot / "initrd.img").unlink()
    error = scene.refused()
    assert RELEASE in error.message
    assert f"update-initramfs -c -k {RELEASE}" in str(error.hint)


def test_without_a_range_the_remedy_is_a_boot_option(scene: Scene) -> None:
    scene.machine.file("/proc/cmdline", "quiet")
    assert "memmap=" in str(scene.refused().hint)


def test_a_range_that_the_kernel_does_not_show_is_refused(scene: Scene) -> None:
    scene.machine.file("/proc/iomem", "100000000-10fffffff : System RAM")
    error = scene.refused()
    assert error.subject == "memmap=256M!4G"
    assert "it shows none" in error.message
    scene.machine.file("/proc/iomem", "200000000-20fffffff : Persistent Memory (legacy)")
    assert "memmap=256M!8G" in scene.refused().message


def test_too_many_ranges_are_refused(scene: Scene) -> None:
    scene.machine.file("/proc/cmdline", " ".join(f"memmap=256M!{n}G" for n in range(4, 9)))
    assert "KASLR" in scene.refused().message


def test_the_first_range_is_the_store(scene: Scene) -> None:
    scene.machine.file("/proc/cmdline", "memmap=1G!8G memmap=256M!4G")
    assert scene.make().store == STORE


def test_the_new_kernel_keeps_the_ranges(scene: Scene) -> None:
    assert scene.refused(UsageError, append="memmap=1G!8G").status == ExitStatus.USAGE


def test_nothing_to_preserve_is_wrong_usage(scene: Scene) -> None:
    assert scene.refused(UsageError, cgroups=()).status == ExitStatus.USAGE
    assert scene.refused(UsageError, cgroups=(), all=True).status == ExitStatus.USAGE


def test_a_container_that_was_named_twice_is_one(scene: Scene) -> None:
    names = ("/workload/redis", "workload/redis/", "/sys/fs/cgroup/workload/redis")
    assert len(scene.make(cgroups=names).containers) == 1


def test_a_container_inside_of_another_is_refused(scene: Scene) -> None:
    scene.workload("/workload/redis/inner", 501)
    scene.machine.file("/proc/501/stat", "501 (task) S 500 501 501 0")
    error = scene.refused(cgroups=("/workload/redis", "/workload/redis/inner"))
    assert (error.subject, error.message) == ("/workload/redis", "holds another preserved container")
    scene.workload("/workload/redis-2", 600)
    assert len(scene.make(cgroups=("/workload/redis", "/workload/redis-2")).containers) == 2


def test_a_container_that_is_missing_is_refused_by_name(scene: Scene) -> None:
    assert scene.refused(containers=("web",)).subject == "web"
    assert scene.refused(cgroups=("/none",)).subject == "/none"


def runc(scene: Scene, name: str, **config: Any) -> None:
    """Make a runc container."""
    pid = 700
    state = {
        "init_process_pid": pid,
        "cgroup_paths": {"": f"/sys/fs/cgroup/runc/{name}"},
        "config": {"rootfs": "/srv", "namespaces": [{"type": "NEWPID"}], **config},
    }
    scene.machine.file(f"/run/runc/{name}/state.json", json.dumps(state))
    scene.workload(f"/runc/{name}", pid)


def test_all_takes_every_container_and_refuses_what_naming_it_would(scene: Scene) -> None:
    runc(scene, "web")
    found = scene.make(all=True).containers
    assert {(c.engine, c.name) for c in found} == {("cgroup", "/workload/redis"), ("runc", "web")}
    scene.machine.file("/sys/fs/cgroup/runc/web/cgroup.freeze", "1")
    assert "paused" in scene.refused(cgroups=(), containers=("web",)).message
    assert "paused" in scene.refused(all=True).message


def test_containers_that_do_not_fit_are_refused_with_the_largest(scene: Scene) -> None:
    scene.workload("/workload/big", 600, 150 * MIB, shmem=60 * MIB)
    scene.workload("/workload/bigger", 601, 20 * MIB, file=1 << 40)
    error = scene.refused(cgroups=("/workload/redis", "/workload/big", "/workload/bigger"))
    assert error.subject == "memmap=256M!4G"
    assert "/workload/big alone 210 MiB" in error.message
    assert scene.make(cgroups=("/workload/big",)).memory_bytes == 210 * MIB


def test_room_is_left_for_what_is_not_pages(scene: Scene) -> None:
    scene.machine.file(
        "/sys/fs/cgroup/workload/redis/memory.stat", f"anon {256 * MIB - budget.METADATA_BYTES}"
    )
    assert "has 256 MiB" in scene.refused().message


def test_swapped_memory_is_dumped_and_counts(scene: Scene) -> None:
    """CRIU reads it through the page tables: it comes back from swap, and into the images."""
    scene.machine.file("/sys/fs/cgroup/workload/redis/memory.swap.current", f"{300 * MIB}")
    assert "has 256 MiB" in scene.refused().message


def test_without_the_memory_controller_the_processes_are_asked(scene: Scene) -> None:
    scene.machine.file("/sys/fs/cgroup/workload/redis/memory.stat", "")
    status = "Name: redis\nVmRSS: 99999 kB\nRssAnon: 1024 kB\nRssFile: 7 kB\nRssShmem: 2048 kB\n"
    scene.machine.file("/proc/500/status", status)
    assert scene.make().memory_bytes == 3 * MIB
    scene.machine.file("/proc/500/status", status + f"VmSwap: {300 * 1024} kB")
    assert "has 256 MiB" in scene.refused().message


def test_low_process_ids_of_the_host_are_warned_of(scene: Scene) -> None:
    host = Container("/a", "cgroup", "/workload/low", 7, host_pids=True, host_network=True)
    own = Container("/b", "runc", "/workload/low", 7, host_pids=False, host_network=True)
    scene.machine.cgroup("/workload/low", [7, 40_000])
    (warning,) = plan.pid_warnings(scene.machine.host, [host, own])
    assert warning.startswith("/a: PIDs [7] ")


def test_a_kernel_that_is_loaded_already_is_warned_of(scene: Scene) -> None:
    scene.machine.file("/sys/kernel/kexec_loaded", "1")
    assert "already loaded" in scene.make().warnings[0]


def test_what_is_not_undone_yet_is_refused(scene: Scene) -> None:
    scene.machine.file(str(paths.UNDO), "")
    assert scene.make()
    action = json.dumps({"action": "thaw", "arguments": {"cgroups": ["/a"]}})
    scene.machine.file(str(paths.UNDO), action)
    error = scene.refused()
    assert "thaw" in error.message
    assert "recover" in str(error.hint)


@pytest.fixture
def frames(scene: Scene, programs: Programs) -> Scene:
    """Return a host with a second range, of which 128 MiB are online."""
    for program in plan.FRAMES_PROGRAMS:
        programs.add(program)
    scene.machine.file("/proc/cmdline", "root=/dev/vda1 memmap=256M!4G,256M!8G")
    scene.machine.file("/sys/devices/system/memory/block_size_bytes", "8000000")
    for block, state in ((64, "offline"), (65, "online")):
        scene.machine.file(f"/sys/devices/system/memory/memory{block}/state", state)
        scene.machine.file(f"/sys/devices/system/memory/memory{block}/phys_index", f"{block:08x}")
    scene.machine.file("/proc/meminfo", f"MemTotal: {1 << 20} kB\nMemAvailable: {1 << 19} kB")
    return scene


FRAMES = Range(8 << 30, 256 * MIB)


def test_frames_stay_where_there_is_room_for_them(frames: Scene) -> None:
    frames.workload("/workload/large", 600, 100 * MIB)
    found = frames.make(cgroups=("/workload/large",))
    assert (found.frames, found.warnings) == ((FRAMES,), ())


def test_where_there_is_none_pages_are_copied_and_that_is_said(frames: Scene, programs: Programs) -> None:
    frames.workload("/workload/large", 600, 150 * MIB)
    (programs.directory / plan.FRAMES_PROGRAMS[0]).unlink()  # not needed to copy
    found = frames.make(cgroups=("/workload/large",))
    assert found.frames == ()
    (warning,) = found.warnings
    assert "150 MiB" in warning
    assert "copied to memmap=256M!4G" in warning


def test_who_wants_them_in_place_is_refused(frames: Scene) -> None:
    frames.workload("/workload/large", 600, 150 * MIB)
    error = frames.refused(cgroups=("/workload/large",), pages="in-place")
    assert (error.subject, error.status) == ("memmap=256M!8G", ExitStatus.REFUSED)
    assert "the ranges for frames hold 128 MiB" in error.message


def test_copies_that_do_not_fit_either_are_refused(frames: Scene) -> None:
    frames.workload("/workload/large", 600, 250 * MIB)
    error = frames.refused(cgroups=("/workload/large",))
    assert error.subject == "memmap=256M!8G"
    assert "the ranges for frames hold 128 MiB" in error.message


def test_copies_need_memory_in_the_new_kernel_too(frames: Scene) -> None:
    frames.workload("/workload/large", 600, 150 * MIB)
    frames.machine.file("/proc/meminfo", f"MemTotal: {400 << 10} kB\nMemAvailable: {50 << 10} kB")
    error = frames.refused(cgroups=("/workload/large",))
    assert error.subject == "memory of the new kernel"
