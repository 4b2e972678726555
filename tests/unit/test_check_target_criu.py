# SPDX-License-Identifier: MIT
"""Tests of ``target.criu``, ``target.kernel`` and ``target.downgrade``."""

import ctypes
import mmap
import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from builders.criu import FakeCriu
from builders.host import Machine
from builders.kernel import RELEASE
from builders.memory import Child
from builders.target import PID, REDIS, Target

from upgrade import criu as client
from upgrade.check.model import Status
from upgrade.check.target.criu import REQUIREMENTS, has_droppable, has_guards
from upgrade.errors import DependencyMissing

MADV_GUARD_INSTALL = 102
# include/uapi/linux/mman.h, since Linux 6.11
MAP_DROPPABLE = 8
VMFLAGS = "7f00-7f01 rw-p 00000000 00:00 0\nRss: 4 kB\nVmFlags: rd wr mr mw me ac sd"


@pytest.fixture
def version(criu: FakeCriu, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, int], None]:
    """Return what sets CRIU's version; pycriu is as new."""
    monkeypatch.setattr("os.confstr", lambda name: "glibc 2.39")
    monkeypatch.setattr(client, "pagemap_messages", lambda: messages("nr_pages", "compat_nr_pages"))

    def change(major: int, minor: int, sublevel: int) -> None:
        criu.on("VERSION", ["answer", {"version": [major, minor, sublevel]}])

    change(4, 1, 1)
    return change


def messages(*fields: str) -> SimpleNamespace:
    return SimpleNamespace(
        pagemap_entry=SimpleNamespace(DESCRIPTOR=SimpleNamespace(fields_by_name=dict.fromkeys(fields)))
    )


def test_a_new_criu_passes(target: Target, version: Callable[[int, int, int], None]) -> None:
    assert "4.1.1" in target.one("target.criu", Status.PASS).subject
    version(4, 2, 0)
    target.passes("target.criu")


def test_a_very_old_criu_is_refused(target: Target, version: Callable[[int, int, int], None]) -> None:
    version(3, 16, 1)
    found = target.one("target.criu", Status.FAIL)
    assert "restartable sequences" in found.seen
    assert found.source.endswith("/issues/1696")


def test_split_data_pages_need_criu_4_1(target: Target, version: Callable[[int, int, int], None]) -> None:
    version(4, 0, 0)
    target.passes("target.criu")
    target.extra = b"[vvar]\0[vvar_vclock]\0"
    target.image()
    found = target.one("target.criu", Status.FAIL)
    assert (found.reason, "CRIU 4.1 " in found.remedy) == (f"needed by {RELEASE}", True)
    version(4, 1, 0)
    target.passes("target.criu")


@pytest.mark.parametrize(("libc", "warned"), [("glibc 2.40", True), ("glibc 2.39", False), (None, False)])
def test_the_size_of_rseq_depends_on_the_c_library(
    target: Target,
    version: Callable[[int, int, int], None],
    monkeypatch: pytest.MonkeyPatch,
    libc: str | None,
    warned: bool,
) -> None:
    version(3, 19, 0)
    monkeypatch.setattr("os.confstr", lambda name: libc)
    status = [each.status for each in target.found("target.criu")]
    assert status == [Status.WARN if warned else Status.PASS]


@pytest.mark.parametrize(
    ("release", "status"), [("6.12.9-amd64", Status.WARN), ("6.16.0-amd64", Status.FAIL)]
)
def test_mounts_of_its_own_need_criu_4_1_1(
    target: Target, version: Callable[[int, int, int], None], release: str, status: Status
) -> None:
    version(4, 1, 0)
    initrd = str(target.initrd)
    target.release = release
    target.image()
    target.passes("target.criu", initrd=initrd)
    target.runc("web", PID + 1, namespaces={"mnt": 99})
    found = target.one("target.criu", status, containers=("web",), initrd=initrd)
    assert (found.reason, found.source.endswith("/pull/2701")) == ("needed by web", True)
    version(4, 1, 1)
    target.passes("target.criu", containers=("web",), initrd=initrd)


def test_droppable_memory_needs_criu_4_2(target: Target, version: Callable[[int, int, int], None]) -> None:
    target.machine.file(f"/proc/{PID}/smaps", VMFLAGS)
    target.passes("target.criu")
    target.machine.file(f"/proc/{PID}/smaps", f"{VMFLAGS}\n{VMFLAGS} dp\n")
    found = target.one("target.criu", Status.WARN)
    assert (found.reason, "random" in found.seen) == (f"needed by {REDIS}", True)
    version(4, 2, 0)
    target.passes("target.criu")


def test_guard_pages_need_criu_4_2(
    target: Target, version: Callable[[int, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upgrade.check.target.criu.has_guards", lambda host, pid: pid == PID)
    found = target.one("target.criu", Status.FAIL)
    assert (found.reason, "4.2" in found.remedy) == (f"needed by {REDIS}", True)


def test_what_cannot_be_looked_at_is_not_known(
    target: Target, version: Callable[[int, int, int], None]
) -> None:
    version(4, 0, 0)
    data = bytearray(target.kernel.read_bytes())
    start = data.index(b"\x1f\x8b\x08")
    data[start + 20 : start + 60] = bytes(40)
    target.kernel.write_bytes(data)
    found = target.one("target.criu", Status.SKIP)
    assert ("damaged" in found.seen, "vvar_vclock" in found.reason) == (True, True)


def test_without_containers_nobody_needs_more(
    target: Target, version: Callable[[int, int, int], None]
) -> None:
    target.passes("target.criu", cgroups=())


def test_real_guard_pages_and_droppable_memory_are_seen(machine: Machine) -> None:
    areas = [mmap.mmap(-1, 1 << 20) for _ in range(2)]

    def guard() -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(areas[0]))
        assert ctypes.CDLL(None).madvise(ctypes.c_void_p(address), 4096, MADV_GUARD_INSTALL) == 0

    def droppable() -> None:
        areas[1] = mmap.mmap(-1, 4096, flags=MAP_DROPPABLE | mmap.MAP_ANONYMOUS)

    with Child(lambda: None, guard, droppable) as child:
        os.symlink(f"/proc/{child.pid}", machine.root / f"proc/{child.pid}")
        child.go()
        before = has_guards(machine.host, child.pid), has_droppable(machine.host, child.pid)
        try:
            child.go()
            child.go()
        except AssertionError:
            pytest.skip("this kernel has no such memory")
        after = has_guards(machine.host, child.pid), has_droppable(machine.host, child.pid)
    assert (before, after) == ((False, False), (True, True))


def test_a_task_that_has_ended_has_nothing(machine: Machine) -> None:
    assert not has_guards(machine.host, 4242)
    assert not has_droppable(machine.host, 4242)


@pytest.mark.parametrize("path", ["/proc/sys/kernel/ns_last_pid", "/proc/self/map_files"])
def test_the_running_kernel_has_to_show_itself(
    target: Target, version: Callable[[int, int, int], None], path: str
) -> None:
    file = target.machine.root / path.lstrip("/")
    file.rmdir() if file.is_dir() else file.unlink()
    assert path in target.one("target.criu", Status.FAIL).seen


def test_pycriu_has_to_be_as_new(
    target: Target, version: Callable[[int, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "pagemap_messages", lambda: messages("nr_pages"))
    target.passes("target.criu")
    version(4, 2, 0)
    assert target.one("target.criu", Status.FAIL).subject == "pycriu"


def test_without_pycriu(
    target: Target, version: Callable[[int, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise DependencyMissing("has none", subject="pycriu", hint="apt-get install python3-pycriu")

    monkeypatch.setattr(client, "pagemap_messages", missing)
    assert target.one("target.criu", Status.FAIL).remedy == "apt-get install python3-pycriu"


def test_every_requirement_has_its_source() -> None:
    assert [each.version for each in REQUIREMENTS] == sorted(each.version for each in REQUIREMENTS)
    assert all(each.link.startswith("https://github.com/checkpoint-restore/criu/") for each in REQUIREMENTS)


def test_an_older_kernel_is_warned_of(target: Target) -> None:
    target.passes("target.downgrade")
    target.machine.file("/proc/sys/kernel/osrelease", RELEASE)
    target.passes("target.downgrade")
    target.machine.file("/proc/sys/kernel/osrelease", "6.12.108+deb13-cloud-amd64")
    found = target.one("target.downgrade", Status.WARN)
    assert (found.subject, "6.12.108" in found.seen) == (RELEASE, True)


def test_image_and_initrd_are_told(target: Target) -> None:
    image, initrd = target.found("target.kernel")
    assert (image.subject, image.seen) == (str(target.kernel), RELEASE)
    assert initrd.subject == str(target.initrd)
    target.initrd.unlink()
    (target.boot / f"config-{RELEASE}").unlink()
    assert target.one("target.kernel", Status.FAIL).subject == str(target.kernel)
