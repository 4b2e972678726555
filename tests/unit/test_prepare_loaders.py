# SPDX-License-Identifier: MIT
"""What reaches the kernel: through a real shell as grub-mkconfig's, and through kernel-install's ways."""

import subprocess
from pathlib import Path

import pytest
from builders import loaders
from builders.host import Machine
from builders.loaders import install_grub, install_systemd_boot
from builders.programs import Programs
from hypothesis import given
from hypothesis import strategies as st

from memfs.ranges import Range, parse_command_line
from upgrade import process
from upgrade.errors import DependencyMissing, Refusal, UpgradeError
from upgrade.prepare import grub, loader
from upgrade.prepare.grub import Grub
from upgrade.prepare.kernelinstall import KernelInstall

ARGUMENTS = ("memmap=256M!4G", "memmap=1040M!4464M")
NONE: tuple[str, ...] = ()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "host")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setattr(process, "PATH", str(directory))
    return Programs(directory)


@pytest.mark.parametrize("before", [None, "", "quiet", "a=\\$b c='d e'"])
def test_the_drop_in_adds_to_what_is_set(tmp_path: Path, before: str | None) -> None:
    file = tmp_path / "seamless-upgrade.cfg"
    file.write_text(grub.drop_in(ARGUMENTS))
    setting = f'GRUB_CMDLINE_LINUX="{before}"' if before is not None else ""
    script = f'{setting}\n. {file}\nprintf %s "$GRUB_CMDLINE_LINUX"'
    for shell in ("sh", "bash"):
        said = subprocess.run([shell, "-euc", script], capture_output=True, text=True, check=True).stdout
        expected = (before or "").replace("\\$", "$")
        assert said == " ".join([*([expected] if expected else []), *ARGUMENTS])


def test_what_grub_would_take_for_something_else_is_not_written() -> None:
    for word in ("memmap=1G$4G", "a b", "x;y", "'", '"', "a\\"):
        with pytest.raises(ValueError):
            grub.drop_in([word])


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20))
def test_every_range_can_be_written_and_read_back(size: int, start: int) -> None:
    span = Range(start << 20, size << 20)
    text = grub.drop_in([str(span)])
    assert parse_command_line(text.split("'")[1]) == [span]
    assert grub.words(f"linux /vmlinuz {span}") == ["linux", "/vmlinuz", str(span)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/vmlinuz ro  memmap=1G!4G", ["/vmlinuz", "ro", "memmap=1G!4G"]),
        ("'a b' \"c $d\" e\\ f", ["a b", "c $d", "e f"]),
        ('"a\\"b" \'\\\' "\\n"', ['a"b', "\\", "\\n"]),
        ("a # b", ["a"]),
        ("a#b ; c", ["a#b"]),
        ("memmap=1G\\$4G ''", ["memmap=1G$4G", ""]),
    ],
)
def test_words_as_grub_makes_them(line: str, expected: list[str]) -> None:
    assert grub.words(line) == expected


@pytest.mark.parametrize("update", [True, False])
def test_grub(machine: Machine, programs: Programs, update: bool) -> None:
    install_grub(machine, programs, update=update)
    config = machine.root / "boot/grub/grub.cfg"
    before = config.read_text()
    there = loader.find(machine.host)
    assert isinstance(there, Grub)
    assert there.command_line() == "root=UUID=1-2 ro net.ifnames=0 quiet"
    assert not there.is_set(ARGUMENTS)
    there.set(ARGUMENTS, NONE)
    assert there.is_set(ARGUMENTS)
    *ours, other = loaders.lines(config)
    assert len(ours) == 4
    for line in ours:
        assert " net.ifnames=0 memmap=256M!4G memmap=1040M!4464M" in line
    assert "memmap" not in other
    assert [span.size_bytes >> 20 for span in parse_command_line(there.command_line())] == [256, 1040]
    there.set(("memmap=512M!8G",), ARGUMENTS)
    assert "256M" not in config.read_text()
    there.unset(("memmap=512M!8G",), created=True)
    assert config.read_text() == before
    assert not there.file.exists()


def test_a_grub_mkconfig_that_fails_changes_nothing(machine: Machine, programs: Programs) -> None:
    install_grub(machine, programs)
    config = machine.root / "boot/grub/grub.cfg"
    before = config.read_text()
    programs.add("update-grub", f"echo rubbish > {config}; echo no space left >&2; exit 1")
    with pytest.raises(UpgradeError, match="no space left"):
        Grub(machine.host).set(ARGUMENTS, NONE)
    assert config.read_text() == before
    assert list((machine.root / "etc/default/grub.d").iterdir()) == []


def test_a_drop_in_that_is_overridden_is_found_out(machine: Machine, programs: Programs) -> None:
    install_grub(machine, programs)
    config = machine.root / "boot/grub/grub.cfg"
    before = config.read_text()
    machine.file("/etc/default/grub.d/zz-local.cfg", 'GRUB_CMDLINE_LINUX="mine"')
    with pytest.raises(UpgradeError, match="not become one with memmap=256M!4G") as told:
        Grub(machine.host).set(ARGUMENTS, NONE)
    assert "comes later" in str(told.value.hint)
    assert config.read_text() == before
    assert not Grub(machine.host).file.exists()


def test_arguments_that_stay_are_found_out(machine: Machine, programs: Programs) -> None:
    install_grub(machine, programs)
    there = Grub(machine.host)
    there.set(ARGUMENTS, NONE)
    machine.file("/etc/default/grub.d/copy.cfg", f'GRUB_CMDLINE_LINUX_DEFAULT="{ARGUMENTS[0]}"')
    with pytest.raises(UpgradeError, match="without memmap"):
        there.unset(ARGUMENTS, created=True)
    assert there.is_set(ARGUMENTS)


def test_a_grub_without_drop_ins_is_refused(machine: Machine, programs: Programs) -> None:
    install_grub(machine, programs)
    programs.add("grub-mkconfig", ". /etc/default/grub")
    with pytest.raises(Refusal, match="reads no drop-ins") as told:
        Grub(machine.host).set(ARGUMENTS, NONE)
    assert "grubby" in str(told.value.hint)
    (programs.directory / "grub-mkconfig").unlink()
    with pytest.raises(Refusal, match="no grub-mkconfig"):
        Grub(machine.host).commands()


def test_systemd_boot_without_a_file_keeps_the_running_command_line(
    machine: Machine, programs: Programs
) -> None:
    machine.file(
        "/proc/cmdline",
        "initrd=\\abc\\initrd root=/dev/vda2 rw systemd.machine_id=abc seamless_upgrade.session=x",
    )
    install_systemd_boot(machine, programs)
    there = loader.find(machine.host)
    assert isinstance(there, KernelInstall)
    before = loaders.options(machine)
    there.set(ARGUMENTS, NONE)
    assert there.file.read_text() == "root=/dev/vda2 rw memmap=256M!4G memmap=1040M!4464M\n"
    assert there.is_set(ARGUMENTS)
    assert len(loaders.options(machine)) == 2
    for line in loaders.options(machine):
        assert line == "root=/dev/vda2 rw memmap=256M!4G memmap=1040M!4464M systemd.machine_id=abc"
    there.unset(ARGUMENTS, created=True)
    assert not there.file.exists()
    assert loaders.options(machine) == before


def test_as_long_as_the_ranges_run_the_file_stays(machine: Machine, programs: Programs) -> None:
    """Without it kernel-install would take the running command line, ranges included."""
    machine.file("/proc/cmdline", "root=/dev/vda2 rw")
    install_systemd_boot(machine, programs)
    there = KernelInstall(machine.host)
    there.set(ARGUMENTS, NONE)
    machine.file("/proc/cmdline", "root=/dev/vda2 rw " + " ".join(ARGUMENTS))
    there.unset(ARGUMENTS, created=True)
    assert there.file.read_text() == "root=/dev/vda2 rw\n"
    assert not any("memmap" in line for line in loaders.options(machine))


@pytest.mark.parametrize("path", ["/etc/kernel/cmdline", "/usr/lib/kernel/cmdline"])
def test_systemd_boot_with_a_file(machine: Machine, programs: Programs, path: str) -> None:
    machine.file(path, "root=/dev/vda2\nquiet")
    install_systemd_boot(machine, programs)
    there = KernelInstall(machine.host)
    assert there.command_line() == "root=/dev/vda2 quiet"
    there.set(ARGUMENTS, NONE)
    there.set(("memmap=512M!8G",), ARGUMENTS)
    assert there.file.read_text() == "root=/dev/vda2 quiet memmap=512M!8G\n"
    there.unset(("memmap=512M!8G",), created=path.startswith("/usr"))
    assert there.command_line() == "root=/dev/vda2 quiet"
    assert there.file.exists() is path.startswith("/etc")


def test_a_kernel_install_that_fails_changes_nothing(machine: Machine, programs: Programs) -> None:
    install_systemd_boot(machine, programs)
    before = loaders.options(machine)
    good = (programs.directory / "kernel-install").read_text()
    # the second kernel fails once its arguments are new
    programs.add(
        "kernel-install", f"if grep -q memmap {machine.root}/etc/kernel/cmdline; then exit 1; fi\n{good}"
    )
    with pytest.raises(UpgradeError):
        KernelInstall(machine.host).set(ARGUMENTS, NONE)
    assert not KernelInstall(machine.host).file.exists()
    assert loaders.options(machine) == before


def test_entries_that_do_not_change_are_found_out(machine: Machine, programs: Programs) -> None:
    install_systemd_boot(machine, programs)
    programs.add("kernel-install")
    with pytest.raises(UpgradeError, match="wrote no entries with memmap"):
        KernelInstall(machine.host).set(ARGUMENTS, NONE)
    assert not KernelInstall(machine.host).file.exists()


def test_what_kernel_install_needs(machine: Machine, programs: Programs) -> None:
    with pytest.raises(DependencyMissing):
        KernelInstall(machine.host).commands()
    programs.add("kernel-install")
    with pytest.raises(UpgradeError, match="no kernel"):
        KernelInstall(machine.host).commands()


def test_which_boot_loader(machine: Machine, programs: Programs) -> None:
    with pytest.raises(Refusal, match="neither GRUB nor systemd-boot"):
        loader.find(machine.host)
    install_grub(machine, programs)
    assert loader.find(machine.host).name == "grub"
    machine.file("/boot/efi/loader/entries/abc.conf", "linux /x")
    with pytest.raises(Refusal, match="both"):
        loader.find(machine.host)
    machine.file("/proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1")
    assert loader.find(machine.host).name == "grub"
    loaders.started_by(machine, "systemd-boot 252")
    assert loader.find(machine.host).name == "kernel-install"
    machine.file("/proc/cmdline", "root=/dev/vda1")
    loaders.started_by(machine, "GRUB 2.12")
    assert loader.find(machine.host).name == "grub"
