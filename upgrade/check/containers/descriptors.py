# SPDX-License-Identifier: MIT
"""Descriptors that are no files of any directory: io_uring, perf, BPF, userfaultfd, pidfd and the like.

CRIU knows a few kinds and refuses all others (criu/files.c, ``dump_one_file``).
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from upgrade import linux
from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding
from upgrade.check.processes import Descriptor, Process, by_container
from upgrade.check.situation import Situation
from upgrade.host import Host

ANONYMOUS = "anon_inode:"
KNOWN = frozenset({"[eventfd]", "[eventpoll]", "inotify", "[fanotify]", "[signalfd]", "[timerfd]"})
BPF_MAP, PIDFD = "bpf-map", "[pidfd]"
BPF_MAP_KINDS = {1: "hash", 2: "array"}  # include/uapi/linux/bpf.h; criu/bpfmap.c takes these two
REMEDY = "stop what uses it (for the time of the upgrade), or leave the container out"
# Where there is better advice. libuv has one for its epoll whatever UV_USE_IO_URING says (libuv#4638).
REMEDIES = {
    "[io_uring]": (
        "start it where io_uring is forbidden (sysctl kernel.io_uring_disabled=2, or a seccomp filter as podman's "
        "and Docker's), switch it off in its configuration, or leave the container out"
    ),
}
NAMESPACE = re.compile(r"(?P<kind>[a-z_]+):\[\d+\]")
CRIU = "/usr/sbin/criu"
WHAT = {
    "[io_uring]": "an io_uring",
    "[perf_event]": "a performance counter",
    "bpf-prog": "a BPF program",
    "bpf_link": "a BPF link",
    "btf": "BPF type information",
    "[userfaultfd]": "a userfaultfd",
    "seccomp notify": "a seccomp listener",
    "[landlock-ruleset]": "a Landlock ruleset",
    "kvm-vm": "a virtual machine",
    "kvm-vcpu:0": "a virtual processor",
}


def descriptors(situation: Situation) -> Iterator[Finding]:
    """Look at every descriptor that is no file."""
    count = sum(len(process.descriptors) for process in situation.processes)
    found = (
        trouble
        for _, members in by_container(situation.processes)
        for process in members
        for trouble in _of_process(situation.host, process, members)
    )
    yield from tell(found, "descriptors", f"{count} open, all of kinds that CRIU knows")


def _of_process(host: Host, process: Process, members: Sequence[Process]) -> Iterator[Trouble]:
    for each in process.descriptors:
        told = partial(Trouble, process, source=each.source, remedy=REMEDY)
        kind = each.link.removeprefix(ANONYMOUS)
        namespace = NAMESPACE.fullmatch(each.link)
        if kind == PIDFD or each.link.startswith("pidfd:"):
            yield from _pidfd(process, each, members)
        elif each.link.startswith(ANONYMOUS):
            if kind == BPF_MAP:
                yield from _bpf_map(host, process, each)
            elif kind == "[eventpoll]":
                yield from _eventpoll(process, each, members)
            elif kind not in KNOWN:
                yield told(
                    what=f"{each.what} is {WHAT.get(kind, kind)}",
                    reason="CRIU cannot dump this kind of descriptor",
                    remedy=REMEDIES.get(kind, REMEDY),
                )
        elif namespace and namespace["kind"] not in ("socket", "pipe"):
            known = {link for one in members for link in one.namespaces.values()}
            if each.link not in known | _own_namespaces(host):
                yield told(
                    what=f"{each.what} is the namespace {each.link}",
                    reason="CRIU cannot dump the descriptor of a namespace that no task of the container is in",
                )
        elif not each.is_named and not each.link.startswith(("socket:", "pipe:")):
            yield told(what=f"{each.what} is {each.link}", reason="CRIU cannot dump this kind of descriptor")
        yield from _locks(process, each)


def _own_namespaces(host: Host) -> set[str]:
    return {os.readlink(host.path(f"/proc/self/ns/{kind}")) for kind in host.list("/proc/self/ns")}


def _pidfd(process: Process, each: Descriptor, members: Sequence[Process]) -> Iterator[Trouble]:
    """Look at a pidfd (criu/pidfd.c): its process has to be one of the container, or gone."""
    told = partial(Trouble, process, source=each.source, remedy=REMEDY)
    pid = int(each.field("Pid") or "-1")
    ours = {thread for one in members for thread in (one.pid, *one.threads, *one.children)}
    if pid != -1 and pid not in ours:
        yield told(
            what=f"{each.what} is a pidfd of process {pid}",
            reason="CRIU cannot dump a pidfd of a process of somebody else",
        )
    elif each.flags & os.O_EXCL:  # PIDFD_THREAD
        yield told(what=f"{each.what} is a pidfd of a thread", reason="CRIU cannot dump a pidfd of a thread")


def _bpf_map(host: Host, process: Process, each: Descriptor) -> Iterator[Trouble]:
    told = partial(Trouble, process, source=each.source, remedy=REMEDY)
    kind = int(each.field("map_type") or "0")
    if not _criu_knows_bpf(host):
        yield told(
            what=f"{each.what} is a BPF map",
            reason="this CRIU was built without libbpf and cannot dump BPF maps",
        )
    elif kind not in BPF_MAP_KINDS:
        yield told(
            what=f"{each.what} is a BPF map of type {kind}",
            reason="CRIU can only dump BPF maps that are hashes or arrays",
        )


def _criu_knows_bpf(host: Host) -> bool:
    """Tell whether CRIU is linked with libbpf, without which it knows no maps."""
    try:
        return b"libbpf.so" in host.path(CRIU).read_bytes()
    except FileNotFoundError:  # another check says so
        return True


def _eventpoll(process: Process, each: Descriptor, members: Sequence[Process]) -> Iterator[Trouble]:
    """Look for watched files that the process itself has not open any more (criu/eventpoll.c)."""
    numbers = {one.number for one in process.descriptors}
    seen: Counter[int] = Counter()
    for name, value in each.lines:
        if name != "tfd":
            continue
        words = value.replace(":", " ").split()
        fields = dict(zip(words[1::2], words[2::2], strict=False))
        watched = int(words[0])
        seen[watched] += 1
        if watched in numbers:
            continue
        inode = int(fields.get("ino", "0"), 16)
        known = (one for one in process.descriptors if _inode(one) == inode)
        if not any(_is_watched(process, one, each, watched, seen[watched] - 1) for one in known):
            if _is_dumped_before(process, each, members):
                return
            yield Trouble(
                process,
                f"{each.what} is an epoll that watches descriptor {watched}, which is closed",
                each.source,
                "CRIU cannot dump an epoll that watches a file which its process has no descriptor for",
                "have the program take it out of the epoll before it closes it (EPOLL_CTL_DEL), or restart it",
            )
            return


def _is_dumped_before(process: Process, each: Descriptor, members: Sequence[Process]) -> bool:
    """Tell whether an earlier process has the same open file: CRIU dumps it there, with what that one has open.

    An epoll that was inherited watches what its maker has registered since.
    """
    for other in _as_dumped(members):
        if other is process:
            break
        for one in other.descriptors:
            if one.link == each.link:
                with suppress(OSError):  # it is closed by now
                    if linux.is_same_file(other.pid, one.number, process.pid, each.number):
                        return True
    return False


def _as_dumped(members: Sequence[Process]) -> list[Process]:
    """Return processes in CRIU's order: each before its children, and all below a child before the next one."""
    by_pid = {process.pid: process for process in members}
    waiting = [process for process in reversed(members) if process.pid == process.container.root_pid]
    found = []
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += [by_pid[pid] for pid in reversed(process.children) if pid in by_pid]
    return found


def _is_watched(process: Process, one: Descriptor, epoll: Descriptor, watched: int, earlier: int) -> bool:
    try:
        return linux.is_watched(process.pid, one.number, epoll.number, watched, earlier)
    except OSError:  # it is closed by now
        return False


def _inode(each: Descriptor) -> int:
    return each.state.st_ino if each.state is not None else -1


def _locks(process: Process, each: Descriptor) -> Iterator[Trouble]:
    if not each.is_named or not stat.S_ISREG(each.kind):
        return
    for name, value in each.lines:
        words = value.split()
        if name == "lock" and len(words) > 1 and words[1] not in ("POSIX", "FLOCK", "OFDLCK", "LEASE"):
            yield Trouble(
                process,
                f"{each.what} ({each.link}) has a lock of the kind {words[1]}",
                each.source,
                "CRIU does not know this kind of lock",
                REMEDY,
            )


CHECKS = (Check("containers.descriptors", "CRIU knows the kinds of their descriptors", descriptors),)
