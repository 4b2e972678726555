# SPDX-License-Identifier: MIT
"""The rules by which the checks of containers decide, on what they are told."""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine

from upgrade.check import containers
from upgrade.check.containers import devices, links, mounts, options, sharing, sockets, unix
from upgrade.check.containers.options import DumpOptions
from upgrade.check.containers.trouble import Trouble, lasts, tell
from upgrade.check.model import Finding, Status
from upgrade.check.mounts import MountTable
from upgrade.check.processes import Process
from upgrade.check.situation import Situation
from upgrade.check.sockets import CLOSED, ESTABLISHED, LISTENING, Socket, UnixSocket
from upgrade.config import Config
from upgrade.engines import Container
from upgrade.host import Host
from upgrade.request import Request

CHECKS = {check.id: check for check in containers.CHECKS if not check.asked}
PID = 3_999_001  # beyond pid_max of most machines
ALLOWED = DumpOptions(ext_unix_sk=True)


def container(engine: str = "cgroup", **data: Any) -> Container:
    return Container("it", engine, "/workload/it", PID, host_pids=True, host_network=True, data=data)


def process(host: Host) -> Process:
    return Process(host, container(), PID)


# --- sockets


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (Socket(1, socket.AF_VSOCK, socket.SOCK_STREAM, 0), "vsock"),
        (Socket(1, 44, socket.SOCK_RAW, 0), "AF_XDP"),
        (Socket(1, 31, socket.SOCK_RAW, 0), "Bluetooth"),
        (Socket(1, 99, socket.SOCK_RAW, 0), "family 99"),
        (Socket(1, socket.AF_INET, socket.SOCK_STREAM, 132), "SCTP"),
        (Socket(1, socket.AF_INET6, socket.SOCK_STREAM, 262), "MPTCP"),
        (Socket(1, socket.AF_INET, socket.SOCK_DGRAM, 1), "ping"),
        (Socket(1, socket.AF_INET, 6, 33), "DCCP"),
        (Socket(1, socket.AF_INET, socket.SOCK_DGRAM, 17, corked=True), "corked"),
        (Socket(1, socket.AF_INET, socket.SOCK_DGRAM, 17, bpf_filter=True), "BPF"),
        (Socket(1, socket.AF_INET, socket.SOCK_STREAM, 6, unlabelled=True), "SO_PASSCRED"),
        (Socket(1, socket.AF_NETLINK, socket.SOCK_RAW, 0, port_id=5, groups=33), "group 33"),
        (Socket(1, socket.AF_NETLINK, socket.SOCK_RAW, 0, port_id=0, groups=1), "not bound"),
    ],
)
def test_sockets_that_criu_refuses(found: Socket, word: str) -> None:
    refused = sockets.refusal(found, (4, 1))
    assert refused is not None
    assert word in refused[0]


@pytest.mark.parametrize(
    "found",
    [
        Socket(1, socket.AF_INET, socket.SOCK_STREAM, 6, state=ESTABLISHED),
        Socket(1, socket.AF_INET6, socket.SOCK_DGRAM, 17),
        Socket(1, socket.AF_INET, socket.SOCK_DGRAM, 136),
        Socket(1, socket.AF_INET, socket.SOCK_RAW, 89),
        Socket(1, socket.AF_PACKET, socket.SOCK_RAW, 768),
        Socket(1, socket.AF_NETLINK, socket.SOCK_RAW, 15, port_id=5, groups=32),
        Socket(1, socket.AF_NETLINK, socket.SOCK_DGRAM, 0),
        Socket(1, socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
    ],
)
def test_sockets_that_criu_takes(found: Socket) -> None:
    assert sockets.refusal(found, (4, 1)) is None


def test_later_criu_takes_more() -> None:
    assert sockets.refusal(Socket(1, socket.AF_INET, socket.SOCK_DGRAM, 1, unlabelled=True), (4, 2)) is None


# --- unix sockets: we are 1


def table(*found: UnixSocket) -> dict[int, UnixSocket]:
    return {each.inode: each for each in found}


STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.mark.parametrize(
    ("known", "held", "word"),
    [
        (table(), {1}, "another network namespace"),
        (table(UnixSocket(1, STREAM, ESTABLISHED, peer=2)), {1}, "another network namespace"),
        (
            table(
                UnixSocket(1, STREAM, ESTABLISHED, peer=2), UnixSocket(2, STREAM, ESTABLISHED, "/run/x", 1)
            ),
            {1},
            "/run/x outside",
        ),
        (
            table(UnixSocket(1, DATAGRAM, CLOSED, peer=2), UnixSocket(2, DATAGRAM, CLOSED, peer=1)),
            {1},
            "without a name outside",
        ),
        (
            table(UnixSocket(1, DATAGRAM, CLOSED, peer=2), UnixSocket(2, DATAGRAM, CLOSED, peer=3)),
            {1, 2},
            "without a name",
        ),
        (table(UnixSocket(1, STREAM, ESTABLISHED)), {1}, "other end is gone"),
        (table(UnixSocket(1, STREAM, LISTENING, "/run/x", waiting=(7, 0))), {1}, "/run/x"),
        (
            table(
                UnixSocket(1, STREAM, ESTABLISHED, sent=4),
                UnixSocket(2, STREAM, LISTENING, "@x", waiting=(1,)),
            ),
            {1, 2},
            "sent data to @x",
        ),
    ],
)
def test_unix_sockets_that_criu_refuses(known: dict[int, UnixSocket], held: set[int], word: str) -> None:
    refused = unix.refusal(1, Socket(1, socket.AF_UNIX, STREAM, 0), known, held, ALLOWED, {})
    assert refused is not None
    assert word in refused[0]


def test_a_connection_with_another_preserved_container_is_named() -> None:
    known = table(UnixSocket(1, STREAM, ESTABLISHED, peer=2), UnixSocket(2, STREAM, ESTABLISHED, "/run/x", 1))
    refused = unix.refusal(
        1, Socket(1, socket.AF_UNIX, STREAM, 0), known, {1}, ALLOWED, {1: "web", 2: "database"}
    )
    assert refused is not None
    assert "with /run/x of the container database" in refused[0]
    assert "each container is dumped by itself" in refused[1]


@pytest.mark.parametrize(
    ("known", "held"),
    [
        (table(UnixSocket(1, STREAM, CLOSED)), {1}),
        (table(UnixSocket(1, STREAM, LISTENING, "/run/x", waiting=(7,), received=1)), {1}),
        (
            table(UnixSocket(1, STREAM, ESTABLISHED, peer=2), UnixSocket(2, STREAM, ESTABLISHED, peer=1)),
            {1, 2},
        ),
        (
            table(UnixSocket(1, DATAGRAM, CLOSED, peer=2), UnixSocket(2, DATAGRAM, CLOSED, "/dev/log")),
            {1},
        ),
        (table(UnixSocket(1, STREAM, ESTABLISHED, shutdown=3)), {1}),
        (
            table(UnixSocket(1, STREAM, ESTABLISHED), UnixSocket(2, STREAM, LISTENING, "@x", waiting=(1,))),
            {1, 2},
        ),
    ],
)
def test_unix_sockets_that_criu_takes(known: dict[int, UnixSocket], held: set[int]) -> None:
    assert unix.refusal(1, Socket(1, socket.AF_UNIX, STREAM, 0), known, held, ALLOWED, {}) is None


@pytest.mark.parametrize(
    ("labelled", "received", "refused"), [(True, 4, True), (True, 0, False), (False, 4, False)]
)
def test_credentials_that_wait(labelled: bool, received: int, refused: bool) -> None:
    known = table(
        UnixSocket(1, STREAM, ESTABLISHED, peer=2, received=received),
        UnixSocket(2, STREAM, ESTABLISHED, peer=1),
    )
    found = Socket(1, socket.AF_UNIX, STREAM, 0, labelled=labelled)
    assert (unix.refusal(1, found, known, {1, 2}, ALLOWED, {}) is not None) is refused


def test_outside_only_if_the_engine_asks_for_it() -> None:
    known = table(UnixSocket(1, DATAGRAM, CLOSED, peer=2), UnixSocket(2, DATAGRAM, CLOSED, "/dev/log"))
    assert unix.refusal(1, Socket(1, socket.AF_UNIX, DATAGRAM, 0), known, {1}, DumpOptions(), {}) is not None


# --- mounts

ROOT = "100 99 254:1 /rootfs / rw - ext4 /dev/vda1 rw"
PROC = "101 100 0:50 / /proc rw - proc proc rw"


def mount_table(*lines: str) -> MountTable:
    return MountTable.parse("\n".join([ROOT, PROC, *lines]))


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["102 100 8:16 / /data rw - ext4 /dev/sdb rw"], "kind"),
        (["102 100 0:60 / /net rw - nfs4 host:/x rw"], "kind"),
        (["102 100 0:60 / /remote rw - fuse.sshfs host: rw"], "FUSE"),
        (["102 100 8:16 /part /data rw - ext4 /dev/sdb rw"], "part"),
        (
            ["102 100 0:60 / /tmp rw - tmpfs a rw", "103 100 0:61 / /tmp rw - tmpfs b rw"],
            "two mounts on /tmp",
        ),
    ],
)
def test_mounts_that_criu_refuses(lines: list[str], word: str) -> None:
    found = mount_table(*lines)
    refused = [mounts.refusal(mount, found, frozenset()) for mount in found]
    assert [text for text in refused if text is not None and word in text], refused


@pytest.mark.parametrize(
    ("lines", "external"),
    [
        (["102 100 0:60 / /tmp rw - tmpfs tmpfs rw"], set()),
        (["102 100 0:50 /sys /proc/sys ro - proc proc rw"], set()),
        (["102 100 8:16 /part /data rw - ext4 /dev/sdb rw"], {"/data"}),
        (
            ["102 100 8:16 / /data rw - ext4 /dev/sdb rw", "103 100 8:16 /a /b rw - ext4 /dev/sdb rw"],
            {"/data"},
        ),
        (["102 100 254:1 /rootfs/srv /srv rw - ext4 /dev/vda1 rw"], set()),
        (["102 100 0:60 / /remote rw - fuse.sshfs host: rw"], {"/remote"}),
        (["102 100 0:61 / /sys/fs/cgroup ro - cgroup2 cgroup rw"], set()),
        (["102 100 0:61 /../web /sys/fs/cgroup ro - cgroup2 cgroup rw"], set()),
    ],
)
def test_mounts_that_criu_takes(lines: list[str], external: set[str]) -> None:
    found = mount_table(*lines)
    assert [mounts.refusal(mount, found, frozenset(external)) for mount in found] == [None] * len(
        found.mounts
    )


def test_hidden_mounts() -> None:
    found = mount_table(
        "102 100 0:60 / /a rw - tmpfs a rw",
        "103 102 0:61 / /a rw - tmpfs b rw",
        "104 100 0:62 / /c/d rw - tmpfs c rw",
        "105 100 0:63 / /c rw - tmpfs d rw",
        r"106 100 0:64 / /with\040space rw - tmpfs e rw",
    )
    hidden = {mount.number for mount in found if found.hidden(mount)}
    assert hidden == {102, 104}
    assert found.mounts[106].point == "/with space"


# --- others


@pytest.mark.parametrize(
    ("major", "minor", "known"),
    [
        (1, 3, True),  # null
        (1, 9, True),  # urandom
        (5, 0, True),  # tty
        (5, 2, True),  # ptmx
        (136, 7, True),  # pts/7
        (4, 1, True),  # tty1
        (4, 64, False),  # ttyS0
        (10, 200, True),  # net/tun
        (10, 232, False),  # kvm
        (10, 229, False),  # fuse
        (226, 128, False),  # dri/renderD128
    ],
)
def test_devices(major: int, minor: int, known: bool) -> None:
    assert devices.is_known(os.makedev(major, minor)) is known


def test_network_devices() -> None:
    found: list[dict[str, Any]] = [
        {"ifname": "lo", "link_type": "loopback"},
        {"ifname": "eth0", "link_type": "ether", "linkinfo": {"info_kind": "veth"}},
        {"ifname": "tun0", "link_type": "none", "linkinfo": {"info_kind": "tun"}},
        {"ifname": "sit0", "link_type": "sit", "linkinfo": {"info_kind": "sit"}},
        {"ifname": "gre0", "link_type": "gre", "linkinfo": {"info_kind": "gre"}},
        {"ifname": "wg0", "link_type": "none", "linkinfo": {"info_kind": "wireguard"}},
        {"ifname": "eth1", "link_type": "ether"},
        {"ifname": "vlan5", "link_type": "ether", "linkinfo": {"info_kind": "vlan"}},
    ]
    assert [name for name, _ in links.refused(found)] == ["wg0", "eth1", "vlan5"]


def test_sharing_is_found_by_order() -> None:
    group = {1: 7, 2: 3, 3: 7, 4: 5, 5: 7}  # by process the number of its memory

    def compare(_kind: int, one: int, other: int) -> int:
        return (group[one] > group[other]) - (group[one] < group[other])

    found = set(sharing.shared([1, 2, 3, 4, 5], 1, compare))
    assert {frozenset(pair) for pair in found} <= {frozenset(p) for p in ((1, 3), (3, 5), (1, 5))}
    assert len(found) == 2


def test_options_are_those_of_the_engine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    found = options.of(machine.host, container())
    assert found.ghost_limit == 64 << 20
    assert found.link_remap
    assert found.ext_unix_sk
    data = {
        "rootfs": "/run/it",
        "mounts": [{"destination": "/run/it/data"}],
        "mask_paths": [],
        "devices": ["/dev/null"],
        "namespaces": {},
    }
    found = options.of(machine.host, container("runc", **data))
    assert found.ghost_limit == 1 << 20
    assert not found.link_remap
    assert found.external_mounts == {"/data", "/dev/null"}


def test_trouble_is_told_once_a_container(tmp_path: Path) -> None:
    one = process(Machine(tmp_path).host)
    many = [Trouble(one, f"descriptor {n} is odd", "/proc", "why", "what to do") for n in range(5)]
    (found,) = tell(many, "descriptors", "fine")
    assert found.status is Status.FAIL
    assert found.subject == "it"
    assert found.seen.count("odd") == 3
    assert found.seen.endswith("and 2 more")
    (well,) = tell([], "descriptors", "fine")
    assert (well.status, well.seen) == (Status.PASS, "fine")


def test_what_is_over_in_a_moment_does_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upgrade.check.containers.trouble.PAUSE_S", 0)
    looks = iter([True, True, False, True])
    assert not lasts(lambda: next(looks))
    assert lasts(lambda: True)


# --- on the files of a machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path)
    found.cgroup("/workload/it", [PID])
    found.process(PID, status="State:\tS (sleeping)\nTracerPid:\t0", namespaces={})
    found.file(f"/proc/{PID}/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw")
    found.file(f"/proc/{PID}/task/{PID}/status", "State:\tS (sleeping)")
    (found.root / f"proc/{PID}/fd").mkdir()
    return found


def run(machine: Machine, name: str, **data: Any) -> list[Finding]:
    situation = Situation(machine.host, Request(), Config())
    situation.__dict__["containers"] = [container(**data)]
    return list(CHECKS[f"containers.{name}"].run(situation))


def statuses(found: Iterable[Finding]) -> list[Status]:
    return [each.status for each in found]


def descriptor(machine: Machine, number: int, link: str, information: str = "") -> None:
    os.symlink(link, machine.root / f"proc/{PID}/fd/{number}")
    machine.file(f"/proc/{PID}/fdinfo/{number}", f"pos:\t0\nflags:\t02\nmnt_id:\t1\n{information}")


@pytest.mark.parametrize(
    "name", sorted(set(CHECKS) - {f"containers.{n}" for n in ("found", "addresses", "pids")})
)
def test_nothing_wrong(machine: Machine, name: str) -> None:
    machine.file("/proc/sysvipc/msg", "key msqid perms cbytes qnum lspid lrpid")
    found = run(machine, name.removeprefix("containers."))
    assert statuses(found) == [Status.PASS], found


@pytest.mark.parametrize(
    ("link", "information", "word"),
    [
        ("anon_inode:[io_uring]", "", "io_uring"),
        ("anon_inode:kvm-vm", "", "virtual machine"),
        ("anon_inode:something-new", "", "something-new"),
        ("anon_inode:bpf-map", "map_type:\t27", "type 27"),
        ("anon_inode:[pidfd]", "Pid:\t1", "process 1"),
        ("pidfd:[77]", "Pid:\t1", "process 1"),
        ("net:[4026539999]", "", "net:[4026539999]"),
        ("dmabuf:", "", "dmabuf:"),
    ],
)
def test_odd_descriptors(machine: Machine, link: str, information: str, word: str) -> None:
    descriptor(machine, 5, link, information)
    (found,) = run(machine, "descriptors")
    assert found.status is Status.FAIL
    assert found.subject == "it"
    assert f"PID {PID} (task): descriptor 5" in found.seen
    assert word in found.seen
    assert found.source == f"/proc/{PID}/fd/5"
    assert ("kernel.io_uring_disabled" in found.remedy) == (word == "io_uring")


@pytest.mark.parametrize(
    ("link", "information"),
    [
        ("anon_inode:[eventfd]", "eventfd-count: 3"),
        ("anon_inode:inotify", ""),
        ("anon_inode:bpf-map", "map_type:\t1"),
        ("anon_inode:[pidfd]", "Pid:\t-1"),
        ("anon_inode:[pidfd]", f"Pid:\t{PID}"),
        ("net:[4026531800]", ""),
        ("socket:[7]", ""),
        ("pipe:[7]", ""),
        ("/var/log/x", "lock:\t1: POSIX  ADVISORY  WRITE 7 08:01:5 0 EOF"),
    ],
)
def test_ordinary_descriptors(machine: Machine, link: str, information: str) -> None:
    descriptor(machine, 5, link, information)
    assert statuses(run(machine, "descriptors")) == [Status.PASS]


def test_criu_without_libbpf(machine: Machine) -> None:
    descriptor(machine, 5, "anon_inode:bpf-map", "map_type:\t1")
    machine.file("/usr/sbin/criu", "\x7fELF libnl-3.so.200")
    (found,) = run(machine, "descriptors")
    assert "libbpf" in found.reason
    machine.file("/usr/sbin/criu", "\x7fELF libbpf.so.1")
    assert statuses(run(machine, "descriptors")) == [Status.PASS]


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ("State:\tS (sleeping)\nTracerPid:\t77", "traced by process 77"),
        ("State:\tD (disk sleep)", "state D"),
        ("State:\tS\nSigPnd:\t0000000000000010", "SIGTRAP"),
        (f"State:\tS\nGroups:\t{' '.join(map(str, range(1000)))}", "1000 groups"),
    ],
)
def test_tasks(machine: Machine, status: str, word: str) -> None:
    machine.file(f"/proc/{PID}/status", status)
    (found,) = run(machine, "tasks")
    assert found.status is Status.FAIL
    assert word in found.seen


def test_dead_threads(machine: Machine) -> None:
    machine.file(f"/proc/{PID}/task/{PID + 1}/status", "State:\tZ (zombie)")
    (found,) = run(machine, "tasks")
    assert f"thread {PID + 1} has ended" in found.seen


@pytest.mark.parametrize(("state", "status"), [("S (sleeping)", Status.FAIL), ("Z (zombie)", Status.PASS)])
def test_child_in_another_cgroup(machine: Machine, state: str, status: Status) -> None:
    machine.file(f"/proc/{PID}/task/{PID}/children", "4242 ")
    machine.file("/proc/4242/status", f"Name:\tstray\nState:\t{state}")
    assert statuses(run(machine, "tasks")) == [status]


@pytest.mark.parametrize("kind", ["pid", "user", "ipc", "mnt", "net"])
def test_nested_namespaces(machine: Machine, kind: str) -> None:
    child = PID + 1
    machine.cgroup("/workload/it", [PID, child])
    machine.process(child, namespaces={kind: 4026539999})
    machine.file(f"/proc/{child}/mountinfo", "")
    found = run(machine, "namespaces")
    assert statuses(found) == [Status.FAIL]
    assert f"has a {kind} namespace" in found[0].seen


@pytest.mark.parametrize("lost", [("mnt", "net"), ("time_for_children",), ("time",)])
def test_a_task_that_ends_just_now_has_lost_its_namespaces(machine: Machine, lost: tuple[str, ...]) -> None:
    child = PID + 1
    machine.cgroup("/workload/it", [PID, child])
    machine.process(child, namespaces={})
    for kind in lost:
        (machine.root / f"proc/{child}/ns/{kind}").unlink(missing_ok=True)
    assert all(found.status is Status.PASS for found in run(machine, "namespaces"))


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (
            "7f0000000000-7f0000001000 rw-s 00000000 00:0e 1057 anon_inode:[io_uring]",
            "[io_uring] mapped at 7f0000000000",
        ),
        ("7fffffffe000-7ffffffff000 --xp 00000000 00:00 0 [uprobes]", "uprobes"),
    ],
)
def test_mappings(machine: Machine, line: str, word: str) -> None:
    machine.file(f"/proc/{PID}/maps", line)
    (found,) = run(machine, "mappings")
    assert found.status is Status.FAIL
    assert word in found.seen


def test_system_v(machine: Machine) -> None:
    machine.file(
        f"/proc/{PID}/maps", "7f0000000000-7f0000001000 rw-s 00000000 00:01 5 /SYSV00000000 (deleted)"
    )
    assert statuses(run(machine, "ipc")) == [Status.FAIL]


@pytest.mark.parametrize(("user", "status"), [(PID, Status.WARN), (1, Status.PASS)])
def test_message_queues(machine: Machine, user: int, status: Status) -> None:
    machine.file("/proc/sysvipc/msg", f"key msqid perms cbytes qnum lspid lrpid\n0 3 600 0 0 {user} 0")
    assert statuses(run(machine, "ipc")) == [status]


def test_packets_in_pipes(machine: Machine) -> None:
    os.symlink("pipe:[55]", machine.root / f"proc/{PID}/fd/4")
    machine.file(f"/proc/{PID}/fdinfo/4", f"flags:\t{os.O_DIRECT | os.O_RDWR:o}")
    (found,) = run(machine, "pipes")
    assert (found.status, "packet mode" in found.seen) == (Status.FAIL, True)


@pytest.mark.parametrize(
    ("external", "expected"), [([], Status.WARN), (["/dev/null", "pipe:[55]"], Status.PASS)]
)
def test_pipe_with_an_end_outside(machine: Machine, external: list[str], expected: Status) -> None:
    os.symlink("pipe:[55]", machine.root / f"proc/{PID}/fd/1")
    machine.file(f"/proc/{PID}/fdinfo/1", "flags:\t01")
    machine.process(4242, name="reader")
    (machine.root / "proc/4242/fd").mkdir()
    os.symlink("pipe:[55]", machine.root / "proc/4242/fd/0")
    (found,) = run(machine, "pipes", external_descriptors=external)
    assert found.status is expected
    if expected is Status.WARN:
        assert "process 4242 (reader)" in found.seen


def test_file_of_a_mount_that_is_not_there(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    descriptor(machine, 3, os.fspath(tmp_path / "file"))
    machine.file(f"/proc/{PID}/mountinfo", "2 0 8:1 / / rw - ext4 /dev/sda1 rw")
    os.symlink("/", machine.root / f"proc/{PID}/root")
    (found,) = run(machine, "files")
    assert "descriptor 3" in found.seen
    assert "mount that the container does not have" in found.seen


def test_file_that_is_there(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    descriptor(machine, 3, os.fspath(tmp_path / "file"))
    os.symlink("/", machine.root / f"proc/{PID}/root")
    machine.file(f"/proc/{PID}/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw")
    found = [f for f in run(machine, "files") if "descriptor 3" in f.seen]
    assert found == []
