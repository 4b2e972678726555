# SPDX-License-Identifier: MIT
"""Tests of ``target.config`` and ``target.features``."""

import gzip
from typing import Any

import pytest
from builders.kernel import RELEASE
from builders.target import PID, REDIS, Target

from upgrade.check.model import Status
from upgrade.check.target.needs import MODULES, NEEDS

ELF32 = b"\x7fELF\x01\x01\x01"


def test_a_kernel_with_everything_passes_in_one_line(target: Target) -> None:
    found = target.one("target.config", Status.PASS)
    assert found.seen.startswith("all ")
    assert found.source == str(target.boot / f"config-{RELEASE}")


@pytest.mark.parametrize(
    "option",
    [
        "CHECKPOINT_RESTORE",
        "TIME_NS",
        "X86_PMEM_LEGACY",
        "FS_DAX",
        "NF_TABLES_INET",
        "RSEQ",
        "EPOLL",
        "CGROUPS",
    ],
)
def test_what_every_upgrade_needs_is_missed_by_name(target: Target, option: str) -> None:
    target.config(option)
    found = target.one("target.config", Status.FAIL)
    assert (found.subject, found.seen) == (f"CONFIG_{option}", "not set")
    need = next(need for need in NEEDS if option in need.options)
    assert need.why in found.reason


@pytest.mark.parametrize("option", ["KEXEC_FILE", "PROC_CHILDREN", "UNIX_DIAG"])
def test_what_the_next_upgrade_needs_is_a_warning(target: Target, option: str) -> None:
    target.config(option)
    assert "the next upgrade" in target.one("target.config", Status.WARN).reason


def test_what_belongs_together_is_told_together(target: Target) -> None:
    target.config("PROC_CHILDREN", "NETLINK_DIAG", "PACKET_DIAG")
    found = target.one("target.config", Status.WARN)
    assert found.subject == "CONFIG_PROC_CHILDREN, CONFIG_PACKET_DIAG, CONFIG_NETLINK_DIAG"


def test_an_option_that_the_kernel_does_not_know_may_be_part_of_every_kernel(target: Target) -> None:
    target.config(unlisted=["EPOLL"])
    found = target.one("target.config", Status.WARN)
    assert (found.subject, found.seen) == ("CONFIG_EPOLL", "not known to it")


@pytest.mark.parametrize(
    "option", sorted(set(MODULES) - {"EXT4_FS", "EROFS_FS", "DEV_DAX", "DEV_DAX_KMEM", "DEV_DAX_PMEM"})
)
def test_a_module_counts_only_if_it_is_installed(target: Target, option: str) -> None:
    target.modules(MODULES[option].replace("_", "-"))
    (found,) = target.found("target.config")
    assert found.status in (Status.WARN, Status.FAIL)
    assert (found.subject, found.seen) == (f"CONFIG_{option}", "a module that is not installed")


def test_a_module_that_is_built_in_is_no_module(target: Target) -> None:
    target.modules("nf-tables")
    target.config(NF_TABLES="y")
    target.passes("target.config")


def test_without_any_modules_another_check_says_so(target: Target) -> None:
    (target.tree / "modules.dep").unlink()
    target.passes("target.config")


@pytest.mark.parametrize("kind", ["pid", "user", "net", "ipc", "uts"])
def test_namespaces_are_needed_by_those_that_have_one(target: Target, kind: str) -> None:
    target.config(f"{kind.upper()}_NS")
    target.passes("target.config")
    target.runc("web", PID + 1, namespaces={kind: 99})
    found = target.one("target.config", Status.FAIL, containers=("web",))
    assert "web needs it" in found.reason
    assert REDIS not in found.reason


@pytest.mark.parametrize(("status", "needed"), [("Seccomp:\t2", True), ("Seccomp:\t0", False), ("", False)])
def test_seccomp_is_needed_by_those_that_are_restricted(target: Target, status: str, needed: bool) -> None:
    target.machine.file(f"/proc/{PID}/status", f"Name:\tredis\n{status}")
    target.config("SECCOMP_FILTER")
    if needed:
        assert REDIS in target.one("target.config", Status.FAIL).reason
    else:
        target.passes("target.config")


def test_narrow_programs_need_their_system_calls(target: Target) -> None:
    target.config("IA32_EMULATION")
    (target.machine.root / f"proc/{PID}/exe").write_bytes(b"\x7fELF\x02\x01\x01")
    target.passes("target.config")
    (target.machine.root / f"proc/{PID}/exe").write_bytes(ELF32)
    assert target.one("target.config", Status.FAIL).subject == "CONFIG_IA32_EMULATION"


@pytest.mark.parametrize(
    ("option", "controller"),
    [("MEMCG", "memory"), ("CGROUP_PIDS", "pids"), ("CPUSETS", "cpuset"), ("CGROUP_RDMA", "rdma")],
)
def test_controllers_are_needed_where_they_are_on(target: Target, option: str, controller: str) -> None:
    target.config(option)
    file = f"/sys/fs/cgroup{REDIS}/cgroup.controllers"
    target.machine.file(file, f"misc {controller}")
    assert REDIS in target.one("target.config", Status.FAIL).reason
    target.machine.file(file, "misc hugetlb")
    target.passes("target.config")


@pytest.mark.parametrize(
    ("option", "file", "text"),
    [
        ("AIO", "/proc/sys/fs/aio-nr", "128"),
        ("SYSVIPC", "/proc/sysvipc/shm", "key shmid perms\n0 3 600"),
        ("POSIX_MQUEUE", f"/proc/{PID}/mountinfo", "44 1 0:40 / /dev/mqueue rw - mqueue mqueue rw"),
    ],
)
def test_what_is_used_now_is_needed(target: Target, option: str, file: str, text: str) -> None:
    target.config(option)
    target.passes("target.config")
    target.machine.file(file, text)
    assert target.one("target.config", Status.FAIL).subject == f"CONFIG_{option}"


def test_the_frame_map_is_needed_where_frames_stay(target: Target) -> None:
    target.config("EROFS_FS", "DEV_DAX_KMEM")
    target.passes("target.config")
    target.machine.file("/sys/devices/system/memory/memory41/state", "online")
    lost, later = target.found("target.config")
    assert (lost.status, lost.subject) == (Status.FAIL, "CONFIG_EROFS_FS")
    assert (later.status, later.subject) == (Status.WARN, "CONFIG_DEV_DAX_KMEM")
    target.passes("target.config", pages="copy")


@pytest.mark.parametrize(
    ("restore", "status"), [("lazy", Status.FAIL), ("auto", Status.WARN), ("eager", Status.PASS)]
)
def test_memory_on_demand_is_needed_as_asked_for(target: Target, restore: str, status: Status) -> None:
    target.config("USERFAULTFD")
    assert [each.status for each in target.found("target.config", restore=restore)] == [status]


def test_the_configuration_inside_of_the_kernel_will_do(target: Target) -> None:
    text = (target.boot / f"config-{RELEASE}").read_bytes()
    (target.boot / f"config-{RELEASE}").unlink()
    assert target.one("target.config", Status.SKIP).subject == f"configuration of {RELEASE}"
    target.extra = b"IKCFG_ST" + gzip.compress(text.replace(b"CONFIG_RSEQ=y", b"# CONFIG_RSEQ is not set"))
    target.image()
    assert target.one("target.config", Status.FAIL).subject == "CONFIG_RSEQ"


def test_without_containers_the_rest_is_looked_at(target: Target) -> None:
    target.config("RSEQ", "PID_NS")
    assert target.one("target.config", Status.FAIL, cgroups=()).subject == "CONFIG_RSEQ"


@pytest.mark.parametrize(
    ("append", "wrong"),
    [
        ("", False),
        ("quiet debug", False),
        ("cgroup_disable=memory", True),
        ("cgroup_disable=rdma", False),
        ("systemd.unified_cgroup_hierarchy=0", True),
        ("systemd.unified_cgroup_hierarchy=1", False),
        ("ia32_emulation=off", False),
        ("vdso=0", True),
        ("noxsave", True),
    ],
)
def test_the_command_line_may_not_take_away_what_is_in_use(target: Target, append: str, wrong: bool) -> None:
    options: dict[str, Any] = {"append": append}
    if wrong:
        assert target.one("target.features", Status.FAIL, **options).subject == append
    else:
        target.passes("target.features", **options)


def test_narrow_programs_may_not_be_switched_off(target: Target) -> None:
    (target.machine.root / f"proc/{PID}/exe").write_bytes(ELF32)
    found = target.one("target.features", Status.FAIL, append="quiet ia32_emulation=0")
    assert (found.subject, REDIS in found.reason) == ("ia32_emulation=0", True)


def test_control_groups_of_version_1_are_refused(target: Target) -> None:
    (target.machine.root / "sys/fs/cgroup/cgroup.controllers").unlink()
    assert "version 1" in target.one("target.features", Status.FAIL).seen
