# SPDX-License-Identifier: MIT
"""Pages of the containers that are not simply there: elsewhere, swapped out, huge, merged, promised."""

import errno
import re
from collections.abc import Iterator

from memfs import hotplug
from upgrade import cgroup
from upgrade.budget import swapped_bytes
from upgrade.check.memory.ranges import known
from upgrade.check.model import Finding, failed, passed, skipped, warned
from upgrade.check.situation import Situation
from upgrade.engines import Container
from upgrade.host import Host

PAGE_BYTES = 4096
# So much is read back or copied in no time worth a word
LITTLE_BYTES = 64 << 20
ZSWAP = "/sys/module/zswap/parameters/enabled"
OVERCOMMIT = "/proc/sys/vm/overcommit_memory"
_NEVER = "2"
_HUGE_PAGES = re.compile(r"^\s*vm[./]nr_hugepages\s*=\s*[1-9]", re.MULTILINE)


def residence(situation: Situation) -> Iterator[Finding]:
    """Count the pages in the ranges and elsewhere."""
    host, request = situation.host, situation.request
    _, spans = known(situation)
    containers = list(situation.containers)
    if not spans:
        yield passed("all pages", "are copied: there is no range for page frames")
        return
    from upgrade.dump import gathering  # numpy

    try:
        found = gathering.residences(host, containers, spans)
    except OSError as e:
        if e.errno != errno.ENOTTY:
            raise
        reason = "the running kernel has no PAGEMAP_SCAN (Linux 6.7): pages are not moved, but copied"
        yield skipped(
            "all pages", "it is not known where they lie", source="/proc/PID/pagemap", reason=reason
        )
        return
    for each in found:
        elsewhere, size = each.to_copy * PAGE_BYTES, each.pages * PAGE_BYTES
        seen = f"{(size - elsewhere) >> 20} of {size >> 20} MiB lie in the ranges"
        if elsewhere <= LITTLE_BYTES or request.gather:
            then = f"; {elsewhere >> 20} MiB are moved before the freeze" if elsewhere > LITTLE_BYTES else ""
            yield passed(each.name, seen + then, "/proc/PID/pagemap")
        else:
            yield warned(
                each.name,
                seen,
                source="/proc/PID/pagemap",
                reason=f"{elsewhere >> 20} MiB are copied while the container stands still",
                remedy="leave out --no-gather",
            )


def swap(situation: Situation) -> Iterator[Finding]:
    """Look for memory that is swapped out: all of it comes back for the dump."""
    host, found = situation.host, False
    kind = "in zswap or swapped out" if host.read_or(ZSWAP, "N") in ("Y", "1") else "swapped out"
    available = host.memory()["MemAvailable"]
    swapped = [(c, swapped_bytes(host, c)) for c in situation.containers]
    total = sum(size for _, size in swapped)
    for container, size in swapped:
        if size > LITTLE_BYTES:
            found = True
            yield warned(
                container.name,
                f"{size >> 20} MiB are {kind}",
                source=cgroup.path(container.cgroup, "memory.swap.current"),
                reason="swap does not survive: these pages are read back, the last of them while the container stands "
                f"still{'' if total <= available else f', and there are only {available >> 20} MiB for them'}",
                remedy="bring them back before: swapoff -a && swapon -a"
                if total <= available
                else "free or add memory",
            )
    if not found:
        yield passed("swap", f"{total >> 20} MiB of the containers are {kind}", "/sys/fs/cgroup")


def hugetlb(situation: Situation) -> Iterator[Finding]:
    """Look for pages of hugetlbfs: they are copied, and the new kernel needs as many free ones."""
    host = situation.host
    held = [(c, size) for c in situation.containers if (size := _huge_bytes(host, c))]
    line = f"{host.command_line()} {situation.request.append}"
    kept = any(word.startswith("hugepages=") for word in line.split())
    for container, size in held:
        make, reason = warned, "they are copied to the range for metadata, whatever the pages of frames do"
        remedy = "none needed, if that range has room for them"
        if not kept:
            make = warned if _is_set_by_sysctl(host) else failed
            reason = "the new kernel reserves none for it in time: the restore comes before or beside systemd-sysctl"
            remedy = "give --append hugepages=N, with hugepagesz= before it for a size other than 2 MiB"
        yield make(
            container.name,
            f"{size >> 20} MiB of huge pages",
            source="HugetlbPages in /proc/PID/status",
            reason=reason,
            remedy=remedy,
        )
    if not held:
        yield passed("huge pages", "no container has any of hugetlbfs", "/proc/PID/status")


def ksm(situation: Situation) -> Iterator[Finding]:
    """Look for pages that the kernel merged: each becomes one of its own."""
    host, found = situation.host, False
    for container in situation.containers:
        pids = cgroup.pids(host, container.cgroup)
        merged = PAGE_BYTES * sum(int(host.read_or(f"/proc/{pid}/ksm_merging_pages", "0")) for pid in pids)
        if merged > LITTLE_BYTES:
            found = True
            yield warned(
                container.name,
                f"{merged >> 20} MiB are merged with others of the same contents",
                source="/proc/PID/ksm_merging_pages",
                reason="they come back unmerged and take that much more memory until KSM has found them again",
                remedy="leave so much memory free",
            )
    if not found:
        yield passed("KSM", "few pages are merged, if any", "/proc/PID/ksm_merging_pages")


def overcommit(situation: Situation) -> Iterator[Finding]:
    """Look whether the kernel counts what it promises: the new one has less to promise, without the ranges."""
    host, memory = situation.host, situation.host.memory()
    if host.read_or(OVERCOMMIT, "0") != _NEVER:
        yield passed("overcommit", "memory is promised without counting", OVERCOMMIT)
        return
    _, spans = known(situation)
    inside = sum(part.size_bytes for span in spans for part in hotplug.online_spans(span, host.root))
    ratio = int(host.read_or("/proc/sys/vm/overcommit_ratio", "50"))
    limit = memory["CommitLimit"] - inside * ratio // 100
    seen = (
        f"{memory['Committed_AS'] >> 20} MiB are promised, the new kernel promises {limit >> 20} MiB at first"
    )
    if memory["Committed_AS"] <= limit:
        yield passed("overcommit", seen, "/proc/meminfo")
        return
    yield warned(
        "overcommit",
        seen,
        source="/proc/meminfo",
        reason="with vm.overcommit_memory=2 a restore fails that asks for more",
        remedy="sysctl vm.overcommit_memory=0 (in /etc/sysctl.d, too), or raise vm.overcommit_ratio",
    )


def _huge_bytes(host: Host, container: Container) -> int:
    total = 0
    for pid in cgroup.pids(host, container.cgroup):
        for line in host.read_or(f"/proc/{pid}/status", "").splitlines():
            if line.startswith("HugetlbPages:"):
                total += int(line.split()[1]) * 1024
    return total


def _is_set_by_sysctl(host: Host) -> bool:
    files = ["/etc/sysctl.conf", *(f"/etc/sysctl.d/{name}" for name in host.list("/etc/sysctl.d"))]
    return any(_HUGE_PAGES.search(host.read_or(file, "")) for file in files)
