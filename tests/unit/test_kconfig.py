# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.kconfig``."""

import gzip
from pathlib import Path

import pytest
from builders.host import RELEASE, Machine
from hypothesis import example, given
from hypothesis import strategies as st

from upgrade.kexec import kconfig

TEXT = """#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.12.107 Kernel Configuration
#
CONFIG_CC_VERSION_TEXT="x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"
CONFIG_LSM="landlock,yama,apparmor"
CONFIG_EPOLL=y
CONFIG_EROFS_FS=m
CONFIG_NR_CPUS=8192
# CONFIG_TIME_NS is not set
"""


def test_options_have_their_values() -> None:
    found = kconfig.parse(TEXT, "/boot/config")
    assert [found.get(name) for name in ("EPOLL", "EROFS_FS", "NR_CPUS")] == ["y", "m", "8192"]
    assert found.get("LSM") == "landlock,yama,apparmor"
    assert (found.get("TIME_NS"), found.get("FS_DAX")) == ("", "")
    assert found.refused == {"TIME_NS"}
    assert found.source == "/boot/config"


@pytest.mark.parametrize("directory", ["boot", "usr/lib/modules/6.12.1", "lib/modules/6.12.1"])
def test_the_packages_file_is_found(machine: Machine, tmp_path: Path, directory: str) -> None:
    name = "/config-6.12.1" if directory == "boot" else "/config"
    file = machine.file(f"/{directory}{name}", TEXT)
    found = kconfig.find(machine.host, "6.12.1", tmp_path / "vmlinuz")
    assert found
    assert found.source == str(file)


def test_a_file_beside_the_image_wins(machine: Machine, tmp_path: Path) -> None:
    machine.file("/boot/config-6.12.1", TEXT)
    (tmp_path / "config-6.12.1").write_text(TEXT)
    found = kconfig.find(machine.host, "6.12.1", tmp_path / "vmlinuz")
    assert found
    assert found.source == str(tmp_path / "config-6.12.1")


def test_what_is_no_configuration_is_none(machine: Machine, tmp_path: Path) -> None:
    machine.file("/boot/config-6.12.1", "set default=0")
    assert kconfig.find(machine.host, "6.12.1", tmp_path / "vmlinuz") is None


def test_the_running_kernel_shows_its_own(machine: Machine, tmp_path: Path) -> None:
    (machine.root / "proc/config.gz").write_bytes(gzip.compress(TEXT.encode()))
    found = kconfig.find(machine.host, RELEASE, tmp_path / "vmlinuz")
    assert found
    assert found.get("EPOLL") == "y"
    assert kconfig.find(machine.host, "6.12.1", tmp_path / "vmlinuz") is None


@given(before=st.binary(max_size=99), after=st.binary(max_size=99))
@example(before=b"IKCFG_ST\x1f\x8b", after=b"")
@example(before=b"IKCFG_ST\x1f\x8b\x08\0\0\0\0\0\0\0", after=b"")
def test_it_is_found_inside_of_a_kernel(before: bytes, after: bytes) -> None:
    kernel = before + b"IKCFG_ST" + gzip.compress(TEXT.encode()) + b"IKCFG_ED" + after
    found = kconfig.inside(kernel, "vmlinuz")
    assert found == kconfig.parse(TEXT, "vmlinuz")


def test_a_kernel_without_one_has_none() -> None:
    assert kconfig.inside(b"\x7fELF" + bytes(100), "vmlinuz") is None
    # the marker alone is a text in every kernel that looks for it
    assert kconfig.inside(b"IKCFG_ST\x1f\x8bnonsense", "vmlinuz") is None


def test_the_kernel_that_runs_here_can_be_read() -> None:
    file = Path("/proc/config.gz")
    if not file.exists():
        pytest.skip("this kernel does not show its configuration")
    kernel = b"\x7fELF..IKCFG_ST" + file.read_bytes() + b"IKCFG_ED.."
    found = kconfig.inside(kernel, "vmlinuz")
    assert found
    assert found.get("IKCONFIG_PROC") == "y"
