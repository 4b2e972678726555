# SPDX-License-Identifier: MIT
"""Tests of the checks of the family ``memory``."""

import errno
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from builders.memory import Child, private
from builders.target import PID, REDIS, Target

from upgrade.check.memory.ranges import HEAD_BYTES
from upgrade.check.model import Status

MIB, GIB = 1 << 20, 1 << 30
BLOCK = 128 * MIB
RANGE = "memmap=1G!5G"


def iomem(*spans: tuple[int, int]) -> str:
    return "\n".join(f"{start:x}-{start + size - 1:x} : Persistent Memory (legacy)" for start, size in spans)


def online(target: Target, blocks: Iterable[int] = range(41, 48), node: int | None = None) -> None:
    """Have memory blocks online, by default those of the range for frames."""
    for number in blocks:
        file = target.machine.file(f"/sys/devices/system/memory/memory{number}/state", "online")
        if node is not None:
            (file.parent / f"node{node}").mkdir()


def test_both_ranges_pass(target: Target) -> None:
    online(target)
    assert target.one("memory.store", Status.PASS).subject == "memmap=256M!4G"
    assert target.one("memory.frames", Status.PASS).subject == RANGE
    assert target.one("memory.ranges", Status.PASS).subject == f"memmap=256M!4G, {RANGE}"
    assert target.one("memory.budget", Status.PASS).seen == "10 MiB, which fits"


def test_without_a_range_the_others_wait_for_the_first(target: Target) -> None:
    target.machine.file("/proc/cmdline", "quiet")
    target.machine.file("/proc/iomem", "")
    assert "memmap=" in target.one("memory.store", Status.FAIL).remedy
    target.one("memory.frames", Status.WARN)
    for identity in ("memory.ranges", "memory.budget", "memory.residence"):
        target.one(identity, Status.SKIP)


def test_addresses_may_be_hidden(target: Target) -> None:
    target.machine.file("/proc/iomem", "00000000-00000000 : Persistent Memory (legacy)")
    for identity in ("memory.store", "memory.ranges", "memory.budget"):
        assert "hidden" in target.one(identity, Status.SKIP).seen


def test_too_many_ranges(target: Target) -> None:
    spans = [(n * GIB, 256 * MIB) for n in range(4, 9)]
    target.machine.file("/proc/cmdline", " ".join(f"memmap=256M!{n}G" for n in range(4, 9)))
    target.machine.file("/proc/iomem", iomem(*spans))
    assert "KASLR" in target.one("memory.store", Status.FAIL).seen


def test_entries_of_other_kinds_count_for_kaslr(target: Target) -> None:
    line = f"memmap=256M!4G,{RANGE.removeprefix('memmap=')} memmap=64K$0x10000,1M#0x20000"
    target.machine.file("/proc/cmdline", line)
    target.passes("memory.ranges")
    target.machine.file("/proc/cmdline", line + ",64K$0x90000")
    found = target.one("memory.ranges", Status.WARN)
    assert (found.seen, "KASLR" in found.reason) == ("5 entries, of all kinds", True)


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        ((5 * GIB, GIB - 4096), "the kernel shows memmap=1048572K!5G"),
        ((5 * GIB + 4096, GIB - 4096), "the kernel shows memmap=1048572K!5242884K"),
        (None, "the kernel shows nothing there"),
    ],
)
def test_a_range_that_firmware_took_of(target: Target, shown: tuple[int, int] | None, seen: str) -> None:
    target.machine.file("/proc/iomem", iomem((4 * GIB, 256 * MIB), *([shown] if shown else [])))
    found = target.one("memory.ranges", Status.WARN)
    assert (found.subject, found.seen) == (RANGE, seen)


def test_a_store_that_firmware_took_of_is_refused(target: Target) -> None:
    target.machine.file("/proc/iomem", iomem((4 * GIB, 255 * MIB), (5 * GIB, GIB)))
    assert "memmap=255M!4G" in target.one("memory.store", Status.FAIL).seen
    target.passes("memory.ranges")


@pytest.mark.parametrize(
    ("span", "block", "good"),
    [
        ("1G!5G", BLOCK, True),  # 896 MiB
        ("256M!5G", BLOCK, False),  # 128 MiB
        (f"272M!{5 * GIB - HEAD_BYTES:#x}", BLOCK, True),  # 256 MiB
        ("4G!5G", 2 * GIB, False),  # 2 GiB: large machines have large blocks
        (f"{4 * GIB + HEAD_BYTES:#x}!{6 * GIB - HEAD_BYTES:#x}", 2 * GIB, True),
    ],
)
def test_whole_blocks_count(target: Target, span: str, block: int, good: bool) -> None:
    from memfs import ranges

    size, start = map(ranges.parse_size, span.split("!"))
    target.machine.file("/proc/cmdline", f"memmap=256M!4G memmap={span}")
    target.machine.file("/proc/iomem", iomem((4 * GIB, 256 * MIB), (start, size)))
    target.machine.file("/sys/devices/system/memory/block_size_bytes", f"{block:x}")
    if good:
        target.passes("memory.ranges")
    else:
        found = target.one("memory.ranges", Status.WARN)
        assert f"blocks of {block >> 20} MiB" in found.reason
        advised = int(found.remedy.rpartition(" ")[2], 16)
        assert (advised + HEAD_BYTES) % block == 0


def test_containers_that_do_not_fit(target: Target) -> None:
    target.machine.file(f"/sys/fs/cgroup{REDIS}/memory.stat", f"anon {300 * MIB}")
    assert "has 256 MiB" in target.one("memory.budget", Status.FAIL).seen
    online(target)
    target.passes("memory.budget")
    target.machine.file(f"/sys/fs/cgroup{REDIS}/memory.stat", f"anon {GIB}")
    found = target.one("memory.budget", Status.FAIL)
    assert (found.subject, "hold 896 MiB" in found.seen) == (RANGE, True)


def test_containers_that_fit_only_as_copies(target: Target) -> None:
    online(target, [41])
    target.machine.file(f"/sys/fs/cgroup{REDIS}/memory.stat", f"anon {200 * MIB}")
    found, fits = target.found("memory.budget")
    assert (found.status, fits.status) == (Status.WARN, Status.PASS)
    assert "only 128 MiB: their pages are copied" in found.seen


def nodes(target: Target, **held: int) -> None:
    for number in (0, 1):
        target.machine.file(f"/sys/devices/system/node/node{number}/cpulist", "0-3")
    anon = " ".join(f"{node}={size}" for node, size in held.items())
    target.machine.file(
        f"/sys/fs/cgroup{REDIS}/memory.numa_stat", f"anon {anon}\nfile N0=99 N1=99999999999\nshmem N0=0 N1=0"
    )


def test_ranges_on_the_nodes_of_the_containers(target: Target) -> None:
    online(target, node=0)
    target.passes("memory.numa")
    nodes(target, N0=100 * MIB, N1=9 * MIB)
    assert "2 nodes" in target.one("memory.numa", Status.PASS).seen
    nodes(target, N0=100 * MIB, N1=50 * MIB)
    found = target.one("memory.numa", Status.WARN)
    assert (found.subject, found.seen) == (REDIS, "50 of 150 MiB are on nodes without a range")
    online(target, [48], node=1)
    target.machine.file("/proc/cmdline", "memmap=256M!4G memmap=1G!5G memmap=256M!6G")
    target.passes("memory.numa")


@pytest.mark.parametrize(
    ("swapped", "zswap", "status"), [(10, "N", Status.PASS), (100, "N", Status.WARN), (100, "Y", Status.WARN)]
)
def test_swapped_memory(target: Target, swapped: int, zswap: str, status: Status) -> None:
    target.machine.file("/sys/module/zswap/parameters/enabled", zswap)
    target.machine.file(f"/sys/fs/cgroup{REDIS}/memory.swap.current", str(swapped * MIB))
    found = target.one("memory.swap", status)
    assert f"{swapped} MiB" in found.seen
    assert ("zswap" in found.seen) == (zswap == "Y")


def test_swapped_memory_that_has_no_room(target: Target) -> None:
    target.machine.file(f"/sys/fs/cgroup{REDIS}/memory.swap.current", str(7 * GIB))
    assert "only 6144 MiB" in target.one("memory.swap", Status.WARN).reason


def test_huge_pages_have_to_be_there_in_time(target: Target) -> None:
    target.passes("memory.hugetlb")
    target.machine.file(f"/proc/{PID}/status", "Name:\tredis\nHugetlbPages:\t   65536 kB")
    found = target.one("memory.hugetlb", Status.FAIL)
    assert (found.subject, found.seen) == (REDIS, "64 MiB of huge pages")
    target.machine.file("/etc/sysctl.d/50-huge.conf", "# vm.nr_hugepages = 32\nvm.nr_hugepages=0")
    target.one("memory.hugetlb", Status.FAIL)
    target.machine.file("/etc/sysctl.d/50-huge.conf", "vm.nr_hugepages = 32")
    assert "in time" in target.one("memory.hugetlb", Status.WARN).reason
    assert "copied" in target.one("memory.hugetlb", Status.WARN, append="hugepages=64").reason


def test_merged_pages(target: Target) -> None:
    target.machine.file(f"/proc/{PID}/ksm_merging_pages", "256")
    target.passes("memory.ksm")
    target.machine.file(f"/proc/{PID}/ksm_merging_pages", str(256 * 256))
    assert "256 MiB" in target.one("memory.ksm", Status.WARN).seen


@pytest.mark.parametrize(
    ("mode", "promised_mib", "status"),
    [("0", 9999, Status.PASS), ("2", 3000, Status.PASS), ("2", 4000, Status.WARN)],
)
def test_promises_of_a_kernel_that_counts(
    target: Target, mode: str, promised_mib: int, status: Status
) -> None:
    online(target)  # 896 MiB, of which half is promised
    target.machine.file("/proc/sys/vm/overcommit_memory", mode)
    lines = ["MemTotal: 8388608 kB", "MemAvailable: 6291456 kB", "CommitLimit: 4194304 kB"]
    target.machine.file("/proc/meminfo", "\n".join([*lines, f"Committed_AS: {promised_mib << 10} kB"]))
    target.one("memory.overcommit", status)


def last_frame_bytes() -> int:
    """Return where this machine's memory ends."""
    lines = Path("/proc/iomem").read_text().splitlines()
    return (
        max(
            int(line.partition(" ")[0].partition("-")[2], 16) for line in lines if line.endswith("System RAM")
        )
        + 1
    )


def live(target: Target, pid: int, start: int, size: int) -> None:
    """Have a real process in the container, and the range for frames anywhere in the real memory."""
    target.machine.file(f"/sys/fs/cgroup{REDIS}/cgroup.procs", str(pid))
    target.machine.file("/proc/cmdline", f"memmap=1M!0 memmap={size:#x}!{start:#x}")
    target.machine.file("/proc/iomem", iomem((0, MIB), (start, size)))
    online(target, range(start // BLOCK, (start + size) // BLOCK))


def test_real_pages_are_counted_where_they_lie(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    # the root of a tree is a session leader to the engine, which the child is not
    monkeypatch.setattr("upgrade.engines.cgroup.CgroupEngine._root", lambda self, path, pids: pids[0])
    kept: list[mmap.mmap] = []
    with Child(lambda: kept.append(private(80))) as child:
        child.go()
        monkeypatch.setattr("upgrade.engines.cgroup.CgroupEngine._refuse_foreign_namespaces", lambda *_: None)
        everything = -(-last_frame_bytes() // BLOCK) * BLOCK
        live(target, child.pid, BLOCK, everything - BLOCK)
        found = target.one("memory.residence", Status.PASS, gather=False)
        here, _, size = found.seen.partition(" of ")
        assert int(here) >= 80
        assert int(size.partition(" ")[0]) >= 80
        nowhere = 1 << 40
        target.machine.file("/proc/cmdline", f"memmap=1M!0 memmap=256M!{nowhere:#x}")
        target.machine.file("/proc/iomem", iomem((0, MIB), (nowhere, 256 * MIB)))
        online(target, [nowhere // BLOCK])
        assert "are moved before the freeze" in target.one("memory.residence", Status.PASS).seen
        found = target.one("memory.residence", Status.WARN, gather=False)
        assert (found.seen.startswith("0 of "), "--no-gather" in found.remedy) == (True, True)


def test_without_a_range_for_frames_all_is_copied(target: Target) -> None:
    assert "copied" in target.one("memory.residence", Status.PASS).seen


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOTTY, "PAGEMAP_SCAN"), (errno.EPERM, "not permitted")])
def test_where_pages_lie_may_be_hidden(
    target: Target, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    online(target)
    monkeypatch.setattr("upgrade.dump.gathering.residences", refuse)
    found = target.one("memory.residence", Status.SKIP)
    assert reason in f"{found.seen} {found.reason}"
