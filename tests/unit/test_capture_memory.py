# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.memory`` and ``upgrade.dump.objects`` on memory of real processes."""

import ctypes
import mmap
import os
import subprocess
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from builders.frames import LIBC, PAGE, frames_of
from builders.memory import Child, private, shared

from memfs.pagemap import Runs
from upgrade.dump import memory, objects
from upgrade.dump.memory import Memory, TaskMemory, tasks_by_number
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.pagemaps import Pagemap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
HOST = Host()
PAGES = 256
CLONE_NEWIPC = 0x08000000
IPC_CREAT, IPC_RMID = 0o1000, 0
# The child's own objects, so that they live as long as it does.
KEPT: list[object] = []


def keep(value: int, *objects: object) -> int:
    KEPT.extend(objects)
    return value


def at(area: mmap.mmap) -> int:
    return int(np.frombuffer(area, np.uint8).ctypes.data)


def pagemap(number: int, *runs: tuple[int, int], shared: bool = True) -> Pagemap:
    starts, counts = zip(*runs, strict=True) if runs else ((), ())
    return Pagemap(number, shared, "pages-1.img", array("q", starts), array("q", counts))


def contents(of: Memory, *runs: tuple[int, int]) -> bytes:
    found = bytearray()
    with of.reading() as read:
        for start, pages in runs:
            part = bytearray(pages * PAGE)
            read(start, memoryview(part))
            found += part
    return bytes(found)


@contextmanager
def one(child: int, wanted: Pagemap, host: Host = HOST) -> Iterator[Memory]:
    with memory.opened(host, child, [child], [wanted]) as (found,):
        yield found


def inode_at(pid: int, address: int) -> int:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split()
        start, end = (int(number, 16) for number in words[0].split("-"))
        if start <= address < end:
            return int(words[4])
    raise AssertionError(hex(address))


def anonymous(pid: int) -> set[str]:
    return {line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "(deleted)" in line}


def test_a_task() -> None:
    area = private(1)
    with Child(lambda: at(area)) as child:
        address = int(child.go())
        runs = [(address + 3 * PAGE, 5), (address + 100 * PAGE, 1)]
        with one(child.pid, pagemap(child.pid, *runs, shared=False)) as found:
            expected = [pfn for run in runs for pfn in frames_of(child.pid, *run)]
            assert all(expected)
            assert found.frames(Runs.of(runs)).tolist() == expected
            assert contents(found, *runs) == b"".join(
                area[s - address : s - address + n * PAGE] for s, n in runs
            )


def test_tasks_keep_no_descriptors() -> None:
    before = set(os.listdir("/proc/self/fd"))
    maps = [pagemap(os.getpid(), shared=False)] * 2000
    with memory.opened(HOST, os.getpid(), [os.getpid()], maps) as found:
        assert len(found) == 2000
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("step", [1, 2, 50])
def test_shared_memory_that_is_mapped(step: int) -> None:
    area = shared(1)
    expected = area[:]
    with Child(lambda: at(area)) as child:
        address = int(child.go())
        runs = [(page * PAGE, 1) for page in range(0, PAGES, step)]
        with one(child.pid, pagemap(inode_at(child.pid, address), *runs)) as found:
            pfns = frames_of("self", at(area), PAGES)[::step]
            assert all(pfns)
            assert found.frames(Runs.of(runs)).tolist() == pfns
            assert contents(found, *runs) == b"".join(expected[s : s + PAGE] for s, _ in runs)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("size", [1, PAGE, 5 * PAGE - 7, 9 * PAGE])
def test_a_memfd_of_any_size(size: int, mapped: bool) -> None:
    data = os.urandom(size)

    def make() -> int:
        fd = os.memfd_create("object")
        os.write(fd, data)
        return keep(os.fstat(fd).st_ino, *([mmap.mmap(fd, 0)] if mapped else []))

    with Child(make) as child:
        number, pages = int(child.go()), -(-size // PAGE)
        before = anonymous(os.getpid())
        with one(child.pid, pagemap(number, (0, pages))) as found:
            assert found.frames(Runs.of([(0, pages)])).all()
            assert contents(found, (0, pages)) == data.ljust(pages * PAGE, b"\0")
        assert anonymous(os.getpid()) == before


def test_holes_of_an_object_stay_holes() -> None:
    fd = os.memfd_create("sparse")
    os.truncate(fd, 64 << 20)
    written = [0, 17 * PAGE, 18 * PAGE, 40 << 20]
    for offset in written:
        os.pwrite(fd, b"x", offset)
    before = os.fstat(fd).st_blocks
    runs = [(offset, 1) for offset in written]
    with one(os.getpid(), pagemap(os.fstat(fd).st_ino, *runs)) as found:
        assert found.frames(Runs.of(runs)).all()
    assert os.fstat(fd).st_blocks == before
    os.close(fd)


def test_an_object_that_is_cut_off_is_an_error_and_no_signal() -> None:
    fd = os.memfd_create("short")
    os.write(fd, bytes(4 * PAGE))
    with one(os.getpid(), pagemap(os.fstat(fd).st_ino, (0, 4))) as found:
        os.truncate(fd, PAGE)
        with pytest.raises(UpgradeError, match="cannot be read"):
            found.frames(Runs.of([(0, 4)]))
        with pytest.raises(UpgradeError, match="cannot be read"):
            contents(found, (0, 4))
    os.close(fd)


def system_v(attached: bool, data: bytes) -> Callable[[], int]:
    """Return a work that makes a segment in an IPC namespace of its own."""

    def make() -> int:
        assert LIBC.unshare(CLONE_NEWIPC) == 0
        for _ in range(3):  # an identifier that no other namespace has by chance
            number = LIBC.shmget(0, len(data), IPC_CREAT | 0o600)
        LIBC.shmat.restype = ctypes.c_void_p
        address = LIBC.shmat(number, None, 0)
        ctypes.memmove(address, data, len(data))
        if not attached:
            assert LIBC.shmdt(ctypes.c_void_p(address)) == 0
        return int(number)

    return make


@pytest.mark.parametrize("attached", [False, True])
def test_a_segment_of_system_v(attached: bool) -> None:
    data = os.urandom(5 * PAGE + 100)
    own = os.readlink("/proc/self/ns/ipc")
    with Child(system_v(attached, data)) as child:
        number = int(child.go())
        before = anonymous(os.getpid())
        with one(child.pid, pagemap(number, (PAGE, 5))) as found:
            assert found.frames(Runs.of([(PAGE, 5)])).all()
            assert contents(found, (PAGE, 5)) == data.ljust(6 * PAGE, b"\0")[PAGE:]
        assert anonymous(os.getpid()) == before
        with one(child.pid, pagemap(number, (0, 6))) as found:  # it is still there
            assert contents(found, (0, 6)) == data.ljust(6 * PAGE, b"\0")
    assert os.readlink("/proc/self/ns/ipc") == own


def test_an_object_that_nobody_has_is_an_error() -> None:
    with (
        pytest.raises(UpgradeError, match="99999999 is not found: "),
        one(os.getpid(), pagemap(99999999)),
    ):
        pass


def test_a_deleted_file_is_not_taken_for_shared_memory(tmp_path: Path) -> None:
    fd = os.memfd_create("right")
    os.write(fd, b"right" * 1000)
    number = os.fstat(fd).st_ino
    right, wrong = "00:01", "fe:00"
    state = os.fstat(fd).st_dev
    right = f"{os.major(state):02x}:{os.minor(state):02x}"
    maps = [
        f"00002000-00003000 rw-p 00000000 {wrong} {number}    /tmp/deleted (deleted)",
        f"00007000-00009000 rw-s 00000000 {right} {number}    /memfd:right (deleted)",
        f"0000a000-0000b000 rw-p 00000000 {wrong} {number}    /tmp/other (deleted)",
    ]
    link = tmp_path / "proc/77/map_files/7000-9000"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"/proc/self/fd/{fd}")
    (tmp_path / "proc/77/maps").write_text("\n".join(maps))
    with one(77, pagemap(number, (0, 2)), Host(tmp_path)) as found:
        assert contents(found, (0, 1))[:10] == b"rightright"
    # what the link leads to now is something else
    link.unlink()
    link.symlink_to(tmp_path / "proc/77/maps")
    with pytest.raises(UpgradeError, match="no longer"), one(77, pagemap(number, (0, 2)), Host(tmp_path)):
        pass
    os.close(fd)


def test_two_objects_with_one_number_are_refused(tmp_path: Path) -> None:
    state = os.memfd_create("x")
    device = os.fstat(state).st_dev
    name = f"{os.major(device):02x}:{os.minor(device):02x}"
    (tmp_path / "proc/77").mkdir(parents=True)
    (tmp_path / "proc/77/maps").write_text(
        f"00002000-00003000 rw-s 00000000 {name} 5    /SYSV00000000 (deleted)\n"
        f"00004000-00005000 rw-s 00000000 {name} 5    /SYSV00000000 (deleted)\n"
        f"00007000-00009000 rw-s 00000000 {name} 5    /memfd:x (deleted)\n"
    )
    with pytest.raises(UpgradeError, match="2 objects"), one(77, pagemap(5, (0, 1)), Host(tmp_path)):
        pass
    os.close(state)


def test_a_real_deleted_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "deleted"
    file.write_bytes(b"no" * PAGE)
    with file.open("r+b") as f:
        area = mmap.mmap(f.fileno(), 0)
        file.unlink()
        number = os.fstat(f.fileno()).st_ino
    with pytest.raises(UpgradeError, match="not found"), one(os.getpid(), pagemap(number, (0, 1))):
        pass
    area.close()


def test_objects_of_huge_pages_need_none_for_their_holes() -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not pool.exists():
        pytest.skip("no huge pages")
    before = pool.read_text()
    pool.write_text("2")
    try:
        if int(pool.read_text()) < 2:
            pytest.skip("no room for huge pages")
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
        os.truncate(fd, 20 << 20)
        with mmap.mmap(fd, 2 << 20, offset=18 << 20) as area:
            area[:5] = b"right"
            with one(os.getpid(), pagemap(os.fstat(fd).st_ino, (18 << 20, 200))) as found:
                pfns = found.frames(Runs.of([(18 << 20, 200)])).tolist()
                assert pfns == list(range(pfns[0], pfns[0] + 200))
                assert contents(found, (18 << 20, 1))[:5] == b"right"
        os.close(fd)
        assert "memfd:huge" not in Path("/proc/self/maps").read_text()
    finally:
        pool.write_text(before)


def test_tasks_have_their_numbers_from_the_roots_namespace() -> None:
    command = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "sleep 1000 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        inside = int(outer.stdout.readline())
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        root = int(children[0])
        sleeper = int(Path(f"/proc/{root}/task/{root}/children").read_text().split()[0])
        # the outer process is in the cgroup, but not in the namespace
        assert tasks_by_number(HOST, root, [root, sleeper, outer.pid]) == {1: root, inside: sleeper}
        assert tasks_by_number(HOST, outer.pid, [root, outer.pid]) == {root: root, outer.pid: outer.pid}
        with pytest.raises(UpgradeError, match="no such task"), one(root, pagemap(77, shared=False)):
            pass
        outer.kill()


def test_a_task_that_is_gone_is_an_error() -> None:
    with Child() as child:
        found = TaskMemory(HOST, child.pid)
    with pytest.raises(UpgradeError, match="gone"):
        found.frames(Runs.of([(0, 1)]))
    with pytest.raises(UpgradeError, match="gone"):
        tasks_by_number(HOST, child.pid, [child.pid])


def test_devices_are_those_of_shared_memory(tmp_path: Path) -> None:
    fd = os.memfd_create("x")
    assert os.fstat(fd).st_dev in objects._devices()
    assert tmp_path.stat().st_dev not in objects._devices()
    os.close(fd)
