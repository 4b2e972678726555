# SPDX-License-Identifier: MIT
"""Tests of ``target.security``."""

import pytest
from builders.target import PID, REDIS, Target

from upgrade.check.model import Status
from upgrade.check.target.security import LSM, of_kernel
from upgrade.kexec.kconfig import KernelConfig

OPTIONS = {"LSM": "landlock,yama,apparmor,selinux,bpf", "SECURITY_APPARMOR": "y", "SECURITY_SELINUX": "y"}


def label(target: Target, text: str) -> None:
    target.machine.file(f"/proc/{PID}/attr/current", text)


@pytest.mark.parametrize("text", ["", "unconfined", "unconfined\0"])
def test_the_same_module_and_nobody_confined(target: Target, text: str) -> None:
    label(target, text)
    assert target.one("target.security", Status.PASS).seen == "apparmor, as now"


def test_a_profile_has_to_be_loaded_in_time(target: Target) -> None:
    label(target, "docker-default (enforce)\n")
    found = target.one("target.security", Status.WARN)
    assert (found.subject, found.seen) == (REDIS, "is confined by docker-default (enforce)")


def test_another_module_is_refused_for_those_with_labels(target: Target) -> None:
    label(target, "docker-default (enforce)")
    target.config("SECURITY_APPARMOR")
    found = target.one("target.security", Status.FAIL)
    assert (found.seen, REDIS in found.reason) == ("apparmor runs, the new kernel starts selinux", True)
    assert "security=apparmor" in found.remedy


def test_another_module_is_a_warning_where_nobody_has_labels(target: Target) -> None:
    target.config("SECURITY_APPARMOR", "SECURITY_SELINUX")
    assert target.one("target.security", Status.WARN).seen == "apparmor runs, the new kernel starts none"


def test_append_may_change_it(target: Target) -> None:
    label(target, "system_u:system_r:container_t:s0:c1,c2")
    target.machine.file(LSM, "capability,yama,selinux")
    target.one("target.security", Status.FAIL)
    target.passes("target.security", append="security=selinux")
    target.passes("target.security", append="lsm=yama,selinux")


def test_labels_of_smack_are_in_no_dump(target: Target) -> None:
    label(target, "_")
    target.machine.file(LSM, "capability,smack")
    target.one("target.security", Status.WARN)


def test_without_securityfs_nothing_is_known(target: Target) -> None:
    (target.machine.root / LSM.lstrip("/")).unlink()
    target.one("target.security", Status.SKIP)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("quiet", "apparmor"),
        ("apparmor=0", "selinux"),
        ("apparmor=1", "apparmor"),
        ("apparmor=0 selinux=0", ""),
        ("security=selinux", "selinux"),
        ("security=smack", ""),  # not built in
        ("lsm=yama,selinux,apparmor", "selinux"),
        ("lsm=yama", ""),
        ("lsm=apparmor security=selinux", "apparmor"),
    ],
)
def test_the_command_line_decides(line: str, expected: str) -> None:
    assert of_kernel(KernelConfig("", OPTIONS, frozenset()), line) == expected


def test_old_kernels_have_a_default() -> None:
    old = {"DEFAULT_SECURITY": "selinux", "SECURITY_SELINUX": "y"}
    assert of_kernel(KernelConfig("", old, frozenset()), "quiet") == "selinux"
    assert of_kernel(KernelConfig("", {}, frozenset()), "quiet") == ""
