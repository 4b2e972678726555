# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.installed``: which kernel is meant."""

import os
import random
from pathlib import Path

import pytest
from builders.host import RELEASE, Machine

from upgrade.errors import ExitStatus, Refusal, UsageError
from upgrade.kexec import installed

IN_ORDER = [
    "5.10.0-30-amd64",
    "6.1.0-9-amd64",
    "6.1.0-18-amd64",
    "6.12.9",
    "6.12.9+deb13-amd64",
    "6.12.10-amd64",
    "6.12.48+deb13-cloud-amd64",
    "6.12.57+deb13-cloud-amd64",
    "7.2.0-rc1-amd64",
    "7.2.0-rc2-amd64",
    "7.2.0-rc10-amd64",
    "7.2.0-amd64",
    "7.2.12-amd64",
    "7.2.13-rc1",
    "7.2.13",
    "10.0.0",
]


def test_releases_are_in_order() -> None:
    mixed = random.Random(4).sample(IN_ORDER, len(IN_ORDER))
    assert mixed != IN_ORDER
    assert sorted(mixed, key=installed.order) == IN_ORDER


@pytest.fixture
def boot(machine: Machine) -> Machine:
    """Return a machine with the running kernel, an older, a newer one and others' files."""
    for release in (RELEASE, "6.12.9-amd64", "6.12.57-amd64"):
        machine.file(f"/boot/vmlinuz-{release}", release)
        machine.file(f"/boot/initrd.img-{release}", "")
        machine.file(f"/usr/lib/modules/{release}/modules.dep", "")
    machine.file("/boot/grub/grub.cfg", "")
    return machine


def test_the_newest_that_does_not_run_is_taken(boot: Machine) -> None:
    assert installed.find(boot.host, None) == boot.root / "boot/vmlinuz-6.12.57-amd64"


def test_the_one_before_is_taken_where_the_newest_runs(boot: Machine) -> None:
    boot.file("/proc/sys/kernel/osrelease", "6.12.57-amd64")
    assert installed.find(boot.host, None) == boot.root / f"boot/vmlinuz-{RELEASE}"


def test_no_other_kernel(machine: Machine) -> None:
    machine.file(f"/boot/vmlinuz-{RELEASE}", "")
    with pytest.raises(Refusal, match="no other kernel is installed") as caught:
        installed.find(machine.host, None)
    assert "--kernel" in str(caught.value.hint)
    assert str(caught.value.subject).endswith(RELEASE)


def test_a_version_is_found_beside_its_modules_too(boot: Machine) -> None:
    image = boot.file("/usr/lib/modules/6.13.0-fedora/vmlinuz", "x")
    assert installed.find(boot.host, "6.13.0-fedora") == image
    assert installed.find(boot.host, None) == image


def test_boot_comes_before_modules(boot: Machine) -> None:
    boot.file("/usr/lib/modules/6.12.9-amd64/vmlinuz", "x")
    assert installed.find(boot.host, "6.12.9-amd64") == boot.root / "boot/vmlinuz-6.12.9-amd64"


def test_a_file_is_itself(boot: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "6.12.9-amd64"
    file.write_text("x")
    monkeypatch.chdir(tmp_path)
    assert installed.find(boot.host, str(file)) == file
    assert installed.find(boot.host, "6.12.9-amd64") == file  # a file of this name wins
    os.unlink(file)
    assert installed.find(boot.host, "6.12.9-amd64") == boot.root / "boot/vmlinuz-6.12.9-amd64"


@pytest.mark.parametrize(
    ("given", "message"),
    [("6.12.8-amd64", "neither a file nor an installed version"), ("/boot/nothing", "no such file")],
)
def test_what_is_unknown_is_told_with_what_is_known(boot: Machine, given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        installed.find(boot.host, given)
    assert (caught.value.subject, caught.value.status) == (given, ExitStatus.USAGE)
    assert str(caught.value.hint).endswith(f"6.12.9-amd64, {RELEASE}, 6.12.57-amd64")


def test_broken_links_are_no_kernels(machine: Machine) -> None:
    (machine.root / "boot").mkdir()
    os.symlink("nowhere", machine.root / "boot/vmlinuz-9.9.9")
    assert list(installed.installed(machine.host)) == []
