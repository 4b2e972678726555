# SPDX-License-Identifier: MIT
"""Tests of the checks ``kexec.*`` that only read: each passes and does not, on a machine made of files."""

import gzip
import os
import platform
from pathlib import Path

import pytest
from builders.checks import findings, only, situation
from builders.host import RELEASE, Machine
from builders.kernel import bzimage, signed

from upgrade import linux
from upgrade.check import kexec
from upgrade.check.kexec import allowed, firmware, hibernation, hypervisor, signature, trial
from upgrade.check.model import Status
from upgrade.check.situation import Situation, Unknown
from upgrade.errors import Refusal, UsageError

BOTH = ("kexec_file_load", "kexec_load")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the system calls that the kernel has; they may be changed."""
    there = list(BOTH)
    monkeypatch.setattr(linux, "kexec_calls", lambda: tuple(there))
    return there


def test_the_family_is_complete() -> None:
    assert {check.id for check in kexec.CHECKS} == {
        "kexec.architecture",
        "kexec.compiled",
        "kexec.allowed",
        "kexec.hypervisor",
        "kexec.signature",
        "kexec.ima",
        "kexec.command-line",
        "kexec.memory-map",
        "kexec.efi",
        "kexec.crash-kernel",
        "kexec.hibernation",
        "kexec.loaded",
        "kexec.file-load",
    }


def test_architecture(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here = situation(machine.host)
    machine.file(allowed.ARCH, "x86_64")
    assert only(allowed.architecture, here, Status.PASS).seen == "x86_64"
    machine.file(allowed.ARCH, "aarch64")
    assert only(allowed.architecture, here, Status.FAIL).seen == "aarch64"
    os.unlink(machine.root / allowed.ARCH.lstrip("/"))
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert only(allowed.architecture, here, Status.FAIL).seen == "riscv64"


def test_kexec_is_compiled_in(machine: Machine, calls: list[str]) -> None:
    here = situation(machine.host)
    with pytest.raises(Unknown, match="not mounted"):
        findings(allowed.compiled, here)
    machine.file("/sys/kernel/mm/x", "")
    assert only(allowed.compiled, here, Status.FAIL).seen == f"there is no {allowed.LOADED}"
    machine.file(allowed.LOADED, "0")
    assert only(allowed.compiled, here, Status.PASS).seen == "kexec_file_load and kexec_load"
    calls.remove("kexec_file_load")
    assert only(allowed.compiled, here, Status.WARN).seen == "kexec_load only"
    calls.clear()
    assert "neither" in only(allowed.compiled, here, Status.FAIL).seen


def test_a_limit_is_not_used_up_by_asking(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> tuple[str, ...]:
        raise AssertionError("this counts as a load")

    monkeypatch.setattr(linux, "kexec_calls", ask)
    machine.file(allowed.LOADED, "0")
    machine.file(allowed.LIMIT, "1")
    assert only(allowed.compiled, situation(machine.host), Status.PASS).seen == "kexec_file_load"


def test_loading_is_allowed(machine: Machine) -> None:
    here = situation(machine.host)
    with pytest.raises(Unknown, match="kexec_load_disabled"):
        findings(allowed.allowed, here)
    machine.file(allowed.DISABLED, "0")
    assert only(allowed.allowed, here, Status.PASS)  # before Linux 6.3 there is no limit
    machine.file(allowed.LIMIT, "-1")
    assert only(allowed.allowed, here, Status.PASS)
    machine.file(allowed.LIMIT, "2")
    assert only(allowed.allowed, here, Status.WARN).seen == "2"
    machine.file(allowed.LIMIT, "0")
    assert only(allowed.allowed, here, Status.FAIL).subject == "kexec_load_limit_reboot"
    machine.file(allowed.DISABLED, "1")
    assert only(allowed.allowed, here, Status.FAIL).subject == "kexec_load_disabled"


def test_another_kernel_is_loaded(machine: Machine) -> None:
    here = situation(machine.host)
    assert only(allowed.loaded, here, Status.PASS)
    machine.file(allowed.LOADED, "1")
    assert only(allowed.loaded, here, Status.WARN).remedy.startswith("kexec -u")


@pytest.mark.parametrize(
    ("files", "status", "seen"),
    [
        ({}, Status.PASS, "is no virtual machine"),
        (
            {hypervisor.CPUINFO: "flags\t\t: fpu hypervisor"},
            Status.PASS,
            "a virtual machine (it does not say",
        ),
        (
            {
                hypervisor.CPUINFO: "flags : fpu hypervisor",
                hypervisor.VENDOR: "QEMU",
                hypervisor.PRODUCT: "Standard PC",
            },
            Status.PASS,
            "is a virtual machine (QEMU Standard PC)",
        ),
        ({hypervisor.CONTAINER: "lxc"}, Status.FAIL, "is itself a container (lxc)"),
        ({hypervisor.XEN_TYPE: "xen", hypervisor.XEN_RIGHTS: "control_d"}, Status.FAIL, "is dom0 of Xen"),
        (
            {hypervisor.XEN_TYPE: "xen", hypervisor.XEN_GUEST: "PV"},
            Status.FAIL,
            "is a paravirtual guest of Xen",
        ),
        ({hypervisor.XEN_TYPE: "xen", hypervisor.XEN_GUEST: "HVM"}, Status.WARN, "is a guest of Xen (HVM)"),
        ({hypervisor.XEN_TYPE: "xen"}, Status.WARN, "is a guest of Xen"),
        ({hypervisor.CPUINFO: "flags : hypervisor tdx_guest"}, Status.WARN, "is a confidential guest (TDX)"),
        ({f"{hypervisor.SEV_GUEST}/dev": "10:1"}, Status.WARN, "is a confidential guest (SEV)"),
    ],
)
def test_what_lies_below(machine: Machine, files: dict[str, str], status: Status, seen: str) -> None:
    machine.file(hypervisor.CPUINFO, "processor : 0\nflags : fpu vme\nbugs : spectre_v1")
    for path, text in files.items():
        machine.file(path, text)
    found = only(hypervisor.hypervisor, situation(machine.host), status)
    assert seen in found.seen
    assert found.subject == "this host"


@pytest.fixture
def target(machine: Machine) -> Path:
    """Return a kernel that is not signed, with its initrd; the running kernel has no lockdown and no EFI."""
    kernel = machine.file("/boot/vmlinuz-6.12.107", "")
    kernel.write_bytes(bzimage(gzip.compress(b"kernel")))
    machine.file("/boot/initrd.img", "initrd")
    machine.file(signature.LOCKDOWN, "[none] integrity confidentiality")
    return kernel


def of(machine: Machine, target: Path) -> Situation:
    return situation(machine.host, kernel=str(target))


def sign(target: Path) -> None:
    target.write_bytes(signed(target.read_bytes()))


def boot_securely(machine: Machine, state: int) -> None:
    file = machine.file(signature.SECURE_BOOT, "")
    file.write_bytes(bytes((6, 0, 0, 0, state)))


def test_no_signature_is_wanted(machine: Machine, target: Path) -> None:
    found = only(signature.signature, of(machine, target), Status.PASS)
    assert found.subject == str(target)
    assert found.seen == "not signed; lockdown is none, Secure Boot off"
    os.unlink(machine.root / signature.LOCKDOWN.lstrip("/"))
    machine.file(f"{signature.SECURITY}/lsm", "capability")  # built without lockdown
    assert "lockdown is none" in only(signature.signature, of(machine, target), Status.PASS).seen


@pytest.mark.parametrize("lockdown", ["none [integrity] confidentiality", "none integrity [confidentiality]"])
def test_lockdown_wants_a_signature(machine: Machine, target: Path, lockdown: str) -> None:
    machine.file(signature.LOCKDOWN, lockdown)
    found = only(signature.signature, of(machine, target), Status.FAIL)
    assert (found.subject, found.source) == (str(target), signature.LOCKDOWN)
    assert "sbsign" in found.remedy
    sign(target)
    assert only(signature.signature, of(machine, target), Status.PASS).seen.startswith("signed; lockdown is")


def test_lockdown_without_verification_wants_none(machine: Machine, target: Path) -> None:
    machine.file(signature.LOCKDOWN, "none [integrity] confidentiality")
    machine.file(f"/boot/config-{RELEASE}", "CONFIG_KEXEC_FILE=y\n# CONFIG_KEXEC_SIG is not set")
    assert only(signature.signature, of(machine, target), Status.PASS)


def test_a_kernel_may_always_want_one(machine: Machine, target: Path) -> None:
    config = machine.file("/proc/config.gz", "")
    config.write_bytes(gzip.compress(b"CONFIG_KEXEC_SIG=y\nCONFIG_KEXEC_SIG_FORCE=y\n"))
    found = only(signature.signature, of(machine, target), Status.FAIL)
    assert found.source == "CONFIG_KEXEC_SIG_FORCE"
    sign(target)
    assert only(signature.signature, of(machine, target), Status.PASS)


def test_a_signature_of_ima_may_do(machine: Machine, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.file(signature.LOCKDOWN, "none [integrity] confidentiality")
    monkeypatch.setattr(signature, "has_ima_signature", lambda path: path == target)
    assert only(signature.signature, of(machine, target), Status.WARN)


def test_secure_boot_without_lockdown(machine: Machine, target: Path) -> None:
    boot_securely(machine, 1)
    found = only(signature.signature, of(machine, target), Status.WARN)
    assert found.seen == "not signed; lockdown is none, Secure Boot on"
    machine.file(f"/usr/lib/modules/{RELEASE}/config", "# CONFIG_IMA_ARCH_POLICY is not set")
    assert only(signature.signature, of(machine, target), Status.PASS)
    boot_securely(machine, 0)
    assert only(signature.signature, of(machine, target), Status.PASS).seen.endswith("Secure Boot off")


def test_what_cannot_be_read_is_not_known(machine: Machine, target: Path) -> None:
    os.unlink(machine.root / signature.LOCKDOWN.lstrip("/"))  # securityfs is not mounted
    machine.file("/sys/firmware/efi/systab", "")  # and efivarfs neither
    found = only(signature.signature, of(machine, target), Status.SKIP)
    assert found.seen == "not signed; lockdown is not known, Secure Boot not known"
    boot_securely(machine, 0)
    assert only(signature.signature, of(machine, target), Status.PASS)


def test_without_a_target_there_is_no_answer(machine: Machine) -> None:
    with pytest.raises(Unknown):
        findings(signature.signature, situation(machine.host))


def test_ima(machine: Machine, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(signature.ima, of(machine, target), Status.PASS)
    machine.file(signature.IMA_POLICY, "")  # not readable: nothing was loaded
    assert only(signature.ima, of(machine, target), Status.PASS)
    machine.file(signature.IMA_FILE, "measure func=MODULE_CHECK")
    with pytest.raises(Unknown, match="cannot be read"):
        findings(signature.ima, of(machine, target))
    machine.file(signature.IMA_POLICY, "measure func=KEXEC_KERNEL_CHECK\ndont_appraise fsmagic=0x1021994")
    assert only(signature.ima, of(machine, target), Status.PASS)
    machine.file(signature.IMA_POLICY, "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig")
    assert only(signature.ima, of(machine, target), Status.WARN).subject == str(target)
    monkeypatch.setattr(signature, "has_ima_signature", lambda path: path == target)
    assert only(signature.ima, of(machine, target), Status.PASS)
    machine.file(signature.IMA_POLICY, "appraise func=KEXEC_INITRAMFS_CHECK appraise_type=imasig")
    assert only(signature.ima, of(machine, target), Status.WARN).subject == "IMA"


def test_ima_by_the_command_line(machine: Machine, target: Path) -> None:
    machine.file("/proc/cmdline", "quiet ima_policy=tcb|secure_boot")
    assert only(signature.ima, of(machine, target), Status.WARN).subject == str(target)
    machine.file("/proc/cmdline", "quiet ima_policy=tcb")
    assert only(signature.ima, of(machine, target), Status.PASS)


def test_a_file_without_the_attribute(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert not signature.has_ima_signature(tmp_path / "x")


def test_command_line(machine: Machine) -> None:
    machine.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1")
    assert "of 2016 bytes" in only(trial.command_line, situation(machine.host), Status.PASS).seen
    with pytest.raises(Refusal, match="the kernel takes"):
        findings(trial.command_line, situation(machine.host, append="x" * 2000))
    with pytest.raises(UsageError, match="set by seamless-upgrade"):
        findings(trial.command_line, situation(machine.host, append="rdinit=/bin/sh"))


def memory_map(machine: Machine, entries: int, *, ram_last: bool) -> None:
    for number in range(entries):
        start = number << 20
        ram = ram_last if number >= firmware.MOST_ENTRIES else True
        for name, text in (
            ("start", f"{start:#x}"),
            ("end", f"{start + (1 << 20) - 1:#x}"),
            ("type", firmware.RAM if ram else "Reserved"),
        ):
            machine.file(f"{firmware.MEMORY_MAP}/{number}/{name}", text)


def test_memory_map(machine: Machine) -> None:
    here = situation(machine.host)
    with pytest.raises(Unknown):
        findings(firmware.memory_map, here)
    memory_map(machine, firmware.MOST_ENTRIES, ram_last=False)
    assert only(firmware.memory_map, here, Status.PASS).seen.startswith("128 entries")
    memory_map(machine, firmware.MOST_ENTRIES + 3, ram_last=False)
    assert only(firmware.memory_map, here, Status.PASS).seen.startswith("131 entries")
    memory_map(machine, firmware.MOST_ENTRIES + 3, ram_last=True)
    found = only(firmware.memory_map, here, Status.WARN)
    assert found.seen == "131 entries"
    assert "lack 3 MiB" in found.reason


def test_efi(machine: Machine) -> None:
    here = situation(machine.host)
    assert "does not boot with it" in only(firmware.efi, here, Status.PASS).seen
    machine.file(f"{firmware.EFI}/fw_platform_size", "64")
    assert "are off" in only(firmware.efi, here, Status.PASS).seen
    machine.file(f"{firmware.EFI}/efivars/BootOrder-8be4df61", "")
    assert only(firmware.efi, here, Status.WARN).seen == "no map of runtime services"
    machine.file(f"{firmware.EFI}/runtime-map/0/type", "0x5")
    machine.file(f"{firmware.EFI}/runtime-map/1/type", "0x6")
    assert only(firmware.efi, here, Status.PASS).seen.startswith("2 maps")
    machine.file(f"{firmware.EFI}/fw_platform_size", "32")
    assert only(firmware.efi, here, Status.WARN).seen == "its firmware is 32-bit"


def test_crash_kernel(machine: Machine) -> None:
    here = situation(machine.host)
    assert only(firmware.crash_kernel, here, Status.PASS).seen == "no memory is kept for one"
    machine.file("/proc/cmdline", "quiet crashkernel=256M")
    machine.file(firmware.CRASH_SIZE, "0")
    found = only(firmware.crash_kernel, here, Status.WARN)
    assert found.seen.startswith("crashkernel=256M is on")
    machine.file(firmware.CRASH_SIZE, str(256 << 20))
    assert "256 MiB are kept for it; it is not loaded" in only(firmware.crash_kernel, here, Status.PASS).seen
    machine.file(firmware.CRASH_LOADED, "1")
    assert "it is loaded" in only(firmware.crash_kernel, here, Status.PASS).seen


def test_crash_kernel_of_the_new_command_line(machine: Machine) -> None:
    assert only(firmware.crash_kernel, situation(machine.host, append="crashkernel=1G"), Status.WARN)
    assert only(firmware.crash_kernel, situation(machine.host, append="nocrashkernel=1G"), Status.PASS)


@pytest.mark.parametrize("offset", [0, 34816])
def test_hibernation(machine: Machine, offset: int) -> None:
    here = situation(machine.host)
    assert only(hibernation.hibernation, here, Status.PASS).seen == "no device to resume from"
    machine.file(hibernation.RESUME, "0:0")
    assert only(hibernation.hibernation, here, Status.PASS).seen == "no device to resume from"
    machine.file(hibernation.RESUME, "254:2")
    machine.file(hibernation.OFFSET, str(offset))
    machine.file("/sys/dev/block/254:2/uevent", "MAJOR=254\nMINOR=2\nDEVNAME=vda2\nDEVTYPE=partition")
    swap = machine.file("/dev/vda2", "")
    page = offset * 4096
    for signed_with, status in ((b"SWAPSPACE2", Status.PASS), (b"S1SUSPEND\0", Status.FAIL)):
        with swap.open("wb") as file:
            file.seek(page + 4086)
            file.write(signed_with)
        found = only(hibernation.hibernation, here, status)
        assert found.subject == "/dev/vda2"
    assert "--append noresume" in found.remedy
    assert only(hibernation.hibernation, situation(machine.host, append="noresume"), Status.PASS)


def test_a_resume_device_that_has_gone(machine: Machine) -> None:
    machine.file(hibernation.RESUME, "254:2")
    with pytest.raises(FileNotFoundError):
        findings(hibernation.hibernation, situation(machine.host))
