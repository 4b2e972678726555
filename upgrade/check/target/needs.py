# SPDX-License-Identifier: MIT
"""The options of a kernel that an upgrade needs, and what for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from upgrade.check.target.use import Use

By = Callable[[Use], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Need:
    """Some options that are needed together."""

    options: tuple[str, ...]
    why: str
    by: By
    """Who needs them; nobody: they may be missing."""
    fails: bool = True
    """Whether the upgrade fails without; else something of it is not as wished."""


MODULES = {
    "BLK_DEV_PMEM": "nd_pmem",
    "DEV_DAX": "device_dax",
    "DEV_DAX_KMEM": "kmem",
    "DEV_DAX_PMEM": "dax_pmem",
    "EROFS_FS": "erofs",
    "EXT4_FS": "ext4",
    "INET_DIAG": "inet_diag",
    "INET_TCP_DIAG": "tcp_diag",
    "INET_UDP_DIAG": "udp_diag",
    "LIBNVDIMM": "libnvdimm",
    "NETLINK_DIAG": "netlink_diag",
    "NF_TABLES": "nf_tables",
    "PACKET_DIAG": "af_packet_diag",
    "UNIX_DIAG": "unix_diag",
    "X86_PMEM_LEGACY": "nd_e820",
}
"""The modules of options that may be ``m``."""


def _always(use: Use) -> Sequence[str]:
    return ("every upgrade",)


def _criu(use: Use) -> Sequence[str]:
    return ("CRIU",)


def _next(use: Use) -> Sequence[str]:
    return ("the next upgrade",)


def _frames(use: Use) -> Sequence[str]:
    return ("page frames that stay in place",) if use.frames else ()


def _on_demand(wanted: bool) -> By:
    def by(use: Use) -> Sequence[str]:
        lazy = use.situation.request.restore == "lazy"
        asked = use.situation.request.restore != "eager" and lazy is wanted
        return ("memory that comes on demand",) if asked else ()

    return by


def _namespace(kind: str) -> By:
    return lambda use: use.namespaces(kind)


def _controller(name: str) -> By:
    return lambda use: use.controllers(name)


def _filesystem(kind: str) -> By:
    return lambda use: use.with_filesystem(kind)


# What each does for CRIU: https://criu.org/Linux_kernel, and criu/cr-check.c, cr_check(). MEM_SOFT_DIRTY is not here:
# a dump does without it (upgrade/dump/parent.py).
NEEDS = (
    Need(("CHECKPOINT_RESTORE",), "restoring tasks with their numbers and memory layout", _criu),
    Need(("NAMESPACES", "TIME_NS"), "clocks that go on instead of jumping back (criu/timens.c)", _criu),
    Need(("PID_NS",), "its PID namespace", _namespace("pid")),
    Need(("USER_NS",), "its user namespace", _namespace("user")),
    Need(("NET_NS",), "its network namespace", _namespace("net")),
    Need(("IPC_NS",), "its IPC namespace", _namespace("ipc")),
    Need(("UTS_NS",), "its UTS namespace", _namespace("uts")),
    Need(("X86_PMEM_LEGACY", "LIBNVDIMM", "BLK_DEV_PMEM"), "the range that survives", _always),
    Need(("EXT4_FS", "FS_DAX", "ZONE_DEVICE"), "the file system in that range (memfs/store.py)", _always),
    Need(("EROFS_FS",), "the frame map (memfs/erofs.py)", _frames),
    Need(
        ("DEV_DAX", "DEV_DAX_PMEM", "DEV_DAX_KMEM", "MEMORY_HOTPLUG"),
        "giving the ranges for frames back to the allocator after the restore",
        _frames,
        fails=False,
    ),
    Need(("NETFILTER", "NF_TABLES", "NF_TABLES_INET"), "the network lock (upgrade/netlock.py)", _always),
    Need(("USERFAULTFD",), "restoring on demand, as --restore lazy asks for", _on_demand(True)),
    Need(("USERFAULTFD",), "restoring on demand, which is faster", _on_demand(False), fails=False),
    Need(("RSEQ",), "restartable sequences, which the C library registers for every thread", _criu),
    Need(("FUTEX", "EPOLL", "EVENTFD", "SIGNALFD", "TIMERFD"), "what nearly every program uses", _always),
    Need(("FHANDLE", "INOTIFY_USER"), "watches of files (criu/fsnotify.c)", _criu),
    Need(("AIO",), "asynchronous input and output", lambda use: use.native_aio),
    Need(("SYSVIPC",), "System V shared memory, semaphores and queues", lambda use: use.system_v),
    Need(("POSIX_MQUEUE",), "its mount of mqueue", _filesystem("mqueue")),
    Need(("SECCOMP", "SECCOMP_FILTER"), "its seccomp filters", lambda use: use.seccomp),
    Need(("IA32_EMULATION",), "its programs of 32 bits", lambda use: use.narrow),
    Need(("CGROUPS",), "control groups", _always),
    Need(("MEMCG",), "its memory limits", _controller("memory")),
    Need(("CGROUP_PIDS",), "its limit of processes", _controller("pids")),
    Need(("CGROUP_SCHED", "FAIR_GROUP_SCHED"), "its share of processor time", _controller("cpu")),
    Need(("CPUSETS",), "its set of processors", _controller("cpuset")),
    Need(("BLK_CGROUP",), "its limits of input and output", _controller("io")),
    Need(("CGROUP_HUGETLB",), "its limits of huge pages", _controller("hugetlb")),
    Need(("CGROUP_RDMA",), "its limits of RDMA", _controller("rdma")),
    Need(("CGROUP_MISC",), "its limits of other resources", _controller("misc")),
    Need(("CGROUP_DMEM",), "its limits of device memory", _controller("dmem")),
    Need(
        (
            "KEXEC_CORE",
            "KEXEC_FILE",
            "PROC_CHILDREN",
            "PROC_PAGE_MONITOR",
            "UNIX_DIAG",
            "INET_DIAG",
            "INET_TCP_DIAG",
            "INET_UDP_DIAG",
            "PACKET_DIAG",
            "NETLINK_DIAG",
        ),
        "dumping containers and entering a kernel from there",
        _next,
        fails=False,
    ),
)
