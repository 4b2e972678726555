# SPDX-License-Identifier: MIT
"""Tests of ``target.vdso``."""

from dataclasses import replace

import pytest
from builders.kernel import vmlinux
from builders.target import PID, REDIS, Target
from builders.vdso import FUNCTIONS_32, FUNCTIONS_64, VdsoBuilder

from upgrade.check.model import Status
from upgrade.kexec import vdso_find

NARROW = VdsoBuilder(bits=32, functions=FUNCTIONS_32)


@pytest.fixture(autouse=True)
def _running(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that runs has the vDSOs that the builder makes."""
    found = vdso_find.in_vmlinux(vmlinux([VdsoBuilder().build(), NARROW.build()]), "6.12.48")
    without = replace(found, compat=None, compat_unknown="nobody asked")
    monkeypatch.setattr(vdso_find, "running", lambda _host, *, compat: found if compat else without)


def enter(target: Target, *images: VdsoBuilder) -> None:
    target.image(vmlinux([image.build() for image in images]))


def narrow(target: Target) -> None:
    (target.machine.root / f"proc/{PID}/exe").write_bytes(b"\x7fELF\x01\x01\x01")


def test_the_same_functions_pass(target: Target) -> None:
    enter(target, VdsoBuilder(), NARROW)
    found = target.found("target.vdso")
    assert [each.status for each in found if each.subject == "vDSO"] == [Status.PASS]
    assert not [each for each in found if each.status is Status.FAIL]


def test_calls_that_are_handed_on_are_slower_at_most(target: Target) -> None:
    moved = {**FUNCTIONS_64, "__vdso_clock_gettime": 0xA80, "clock_gettime": 0xA80}
    enter(target, VdsoBuilder(functions=moved), NARROW)
    found = target.found("target.vdso")
    assert {each.status for each in found} == {Status.WARN, Status.PASS}
    degraded = [each.subject for each in found if each.status is Status.WARN]
    assert degraded == ["__vdso_clock_getres (64 bits)", "__vdso_getrandom (64 bits)"]


def test_a_function_that_moved_where_nobody_looks_is_refused(target: Target) -> None:
    moved = {**FUNCTIONS_64, "__vdso_getrandom": 0xA80}
    enter(target, VdsoBuilder(functions=moved), NARROW)
    found = [each for each in target.found("target.vdso") if each.status is Status.FAIL]
    assert [each.subject for each in found] == ["__vdso_getrandom (64 bits)"]
    assert "crash" in found[0].reason


def test_narrow_programs_are_asked_after_only_where_there_are_some(target: Target) -> None:
    enter(target, VdsoBuilder())
    assert not [each for each in target.found("target.vdso") if each.status is Status.FAIL]
    narrow(target)
    (found,) = [each for each in target.found("target.vdso") if each.status is Status.FAIL]
    assert (found.subject, REDIS in found.reason) == ("32-bit vDSO", True)


def test_functions_of_narrow_programs(target: Target) -> None:
    moved = {**FUNCTIONS_32, "__vdso_clock_getres": 0xA80}
    enter(target, VdsoBuilder(), replace(NARROW, functions=moved))
    assert not [each for each in target.found("target.vdso") if each.status is Status.FAIL]
    narrow(target)
    found = [each.subject for each in target.found("target.vdso") if each.status is Status.FAIL]
    assert found == ["__vdso_clock_getres (32 bits)"]


def test_a_damaged_kernel_is_refused_here_and_not_known_elsewhere(target: Target) -> None:
    data = bytearray(target.kernel.read_bytes())
    start = data.index(b"\x1f\x8b\x08")
    data[start + 20 : start + 60] = bytes(40)
    target.kernel.write_bytes(data)
    found = target.one("target.vdso", Status.FAIL)
    assert (found.subject, "damaged" in found.seen) == (str(target.kernel), True)
    (target.boot / f"config-{target.release}").unlink()
    target.one("target.config", Status.SKIP)


def test_a_kernel_without_a_vdso_is_refused(target: Target) -> None:
    target.image(vmlinux([bytes(100)]))
    found = target.one("target.vdso", Status.FAIL)
    assert (found.subject, "no 64-bit vDSO" in found.seen) == (str(target.kernel), True)


def test_without_a_kernel_nothing_is_known(target: Target) -> None:
    target.kernel.unlink()
    for identity in ("target.vdso", "target.config", "target.modules", "target.initrd", "target.downgrade"):
        target.one(identity, Status.SKIP)


def test_enclaves_matter_where_there_are_some(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = {**FUNCTIONS_64, "__vdso_sgx_enter_enclave": 0xA00}
    kernel = vmlinux([VdsoBuilder(functions=entered).build(), NARROW.build()])
    running = vdso_find.in_vmlinux(kernel, "6.12.48")
    monkeypatch.setattr(vdso_find, "running", lambda _host, **_options: running)
    enter(target, VdsoBuilder(functions={**entered, "__vdso_sgx_enter_enclave": 0xA80}), NARROW)
    assert not [each for each in target.found("target.vdso") if "sgx" in each.subject]
    target.machine.file("/dev/sgx_enclave", "")
    assert [each.status for each in target.found("target.vdso") if "sgx" in each.subject] == [Status.FAIL]
