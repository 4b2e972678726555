# SPDX-License-Identifier: MIT
"""prepare and unprepare as a whole, on a host made of files."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from builders import firmware, loaders
from builders.firmware import GIB
from builders.host import Machine
from builders.programs import Programs

from memfs import ranges
from upgrade import cli, files, plan, process
from upgrade.cli import prepare as verb
from upgrade.errors import Refusal, UpgradeError, UsageError
from upgrade.host import Host
from upgrade.prepare import grub, loader, memory, pidfloor, preparation, units
from upgrade.prepare import record as records
from upgrade.prepare.record import Record

WANTS = "/etc/systemd/system/sysinit.target.wants"
SYSTEMCTL = r"""
root=${1#--root=}; verb=$2; shift 2
for unit in "$@"; do
    case $unit in -*) continue ;; esac
    mkdir -p $root@WANTS@
    if [ "$verb" = enable ]; then ln -sf /x/$unit $root@WANTS@/$unit; else rm $root@WANTS@/$unit; fi
done
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setattr(process, "PATH", str(directory))
    found = Programs(directory)
    for name in (*plan.PROGRAMS, *plan.FRAMES_PROGRAMS):
        found.add(name)
    found.add("systemctl", SYSTEMCTL.replace("@WANTS@", WANTS))
    return found


@pytest.fixture
def machine(tmp_path: Path, programs: Programs) -> Machine:
    """Return a host of 16 GiB with GRUB, on which scripts/install has run."""
    machine = Machine(tmp_path / "host")
    firmware.build(machine, firmware.pc(14 * GIB))
    loaders.install_grub(machine, programs)
    machine.file("/usr/local/sbin/seamless-upgrade", "")
    for source in units.SOURCES.glob("*.service"):
        machine.file(f"{units.TARGET}/{source.name}", "installed")
    for name in units.ENABLED[:-1]:
        machine.file(f"{WANTS}/{name}", "")
    return machine


def tree(machine: Machine) -> Mapping[str, str]:
    """Return all files of a host but those of a recorded program."""
    return {
        str(path.relative_to(machine.root)): path.read_text() if path.is_file() else "a link"
        for path in sorted(machine.root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def boot(machine: Machine) -> None:
    """Reboot: the kernel gets what grub.cfg says."""
    line = loaders.lines(machine.root / "boot/grub/grub.cfg")[0]
    machine.file("/proc/cmdline", f"BOOT_IMAGE={line}")
    firmware.build(machine, firmware.pc(14 * GIB), aside=ranges.parse_command_line(line))


def test_a_pristine_host(machine: Machine, programs: Programs) -> None:
    before = tree(machine)
    done = preparation.prepare(machine.host, None)
    assert done.changed
    assert done.reboot_needed
    assert not done.by_hand
    assert done.boot_loader == "grub"
    assert done.units == (pidfloor.UNIT,), "the others were enabled"
    assert done.files == (grub.DROP_IN, records.FILE)
    assert done.commands == (("update-grub",),)
    assert done.warnings == ()
    assert len(done.spans) == 2
    found = ranges.parse_command_line(loaders.lines(machine.root / "boot/grub/grub.cfg")[0])
    assert tuple(found) == done.spans
    assert programs.calls("systemctl")[-1][2:] == ["enable", "--quiet", pidfloor.UNIT]
    back = preparation.unprepare(machine.host)
    assert back.changed
    assert not back.reboot_needed, "the ranges were never there"
    assert tree(machine) == before


def test_it_is_done_once(machine: Machine) -> None:
    first = preparation.prepare(machine.host, None)
    after = tree(machine)
    again = preparation.prepare(machine.host, None)
    assert (again.changed, again.reboot_needed) == (False, True)
    assert again.spans == first.spans
    assert not again.files
    assert not again.commands
    assert not again.units
    boot(machine)
    booted = preparation.prepare(machine.host, None)
    assert (booted.changed, booted.reboot_needed) == (False, False)
    assert booted.spans == first.spans
    assert {k: v for k, v in tree(machine).items() if k.startswith(("etc", "var"))} == {
        k: v for k, v in after.items() if k.startswith(("etc", "var"))
    }
    gone = preparation.unprepare(machine.host)
    assert (gone.changed, gone.reboot_needed) == (True, True)
    nothing = preparation.unprepare(machine.host)
    assert (nothing.changed, nothing.reboot_needed) == (False, False)


def test_another_wish_is_another_layout(machine: Machine) -> None:
    first = preparation.prepare(machine.host, "2G")
    assert preparation.prepare(machine.host, "2G").changed is False
    boot(machine)
    more = preparation.prepare(machine.host, "4G")
    assert (more.changed, more.reboot_needed) == (True, True)
    assert sum(s.size_bytes for s in more.spans) > sum(s.size_bytes for s in first.spans)
    assert tuple(ranges.parse_command_line(loader.find(machine.host).command_line())) == more.spans
    assert preparation.prepare(machine.host, None).spans == more.spans, "what was asked for stays"
    same = preparation.prepare(machine.host, "4096M")
    assert same.changed is False
    assert same.spans == more.spans


def test_ranges_survive_taking_them_back_and_again(machine: Machine) -> None:
    first = preparation.prepare(machine.host, "25%")
    boot(machine)
    preparation.unprepare(machine.host)
    boot(machine)
    assert preparation.prepare(machine.host, "25%").spans == first.spans


@pytest.mark.parametrize("where", ["running", "grub.cfg"])
def test_ranges_set_by_hand_are_kept(machine: Machine, programs: Programs, where: str) -> None:
    by_hand = "memmap=256M!4G memmap=1040M!4464M"
    if where == "running":
        machine.file("/proc/cmdline", f"root=/dev/vda1 {by_hand}")
    else:
        machine.file("/etc/default/grub", f'GRUB_CMDLINE_LINUX="{by_hand}"')
        loaders.run_program(programs, "update-grub")
    config = (machine.root / "boot/grub/grub.cfg").read_text()
    machine.file(f"{WANTS}/{pidfloor.UNIT}", "")
    before = tree(machine)
    done = preparation.prepare(machine.host, None)
    assert done.by_hand
    assert done.changed is False
    assert done.reboot_needed is (where == "grub.cfg")
    assert " ".join(map(str, done.spans)) == by_hand
    assert tree(machine) == before
    with pytest.raises(Refusal, match="not by prepare"):
        preparation.prepare(machine.host, "2G")
    (machine.root / WANTS.lstrip("/") / pidfloor.UNIT).unlink()
    assert preparation.prepare(machine.host, None).units == (pidfloor.UNIT,), "the PID floor is missing"
    assert preparation.unprepare(machine.host).changed
    assert (machine.root / "boot/grub/grub.cfg").read_text() == config


def test_a_dry_run_changes_nothing_and_says_the_same(machine: Machine) -> None:
    before = tree(machine)
    would = preparation.prepare(machine.host, None, dry_run=True)
    assert tree(machine) == before
    did = preparation.prepare(machine.host, None)
    assert would.to_json() == {**did.to_json(), "dry_run": True}
    before = tree(machine)
    would = preparation.unprepare(machine.host, dry_run=True)
    assert tree(machine) == before
    assert would.to_json() == {**preparation.unprepare(machine.host).to_json(), "dry_run": True}


def test_a_failing_update_grub_leaves_nothing(machine: Machine, programs: Programs) -> None:
    before = tree(machine)
    programs.add("update-grub", "exit 1")
    with pytest.raises(UpgradeError):
        preparation.prepare(machine.host, None)
    assert tree(machine) == before
    (machine.root / units.TARGET.lstrip("/") / "seamless-upgrade-pages.service").unlink()
    before = tree(machine)
    with pytest.raises(UpgradeError):
        preparation.prepare(machine.host, None)
    assert tree(machine) == before


def test_a_failing_update_grub_keeps_what_was_prepared(machine: Machine, programs: Programs) -> None:
    preparation.prepare(machine.host, "2G")
    good = (programs.directory / "update-grub").read_text()
    programs.add("update-grub", "exit 1")
    before = tree(machine)
    with pytest.raises(UpgradeError):
        preparation.prepare(machine.host, "4G")
    assert tree(machine) == before
    with pytest.raises(UpgradeError):
        preparation.unprepare(machine.host)
    assert tree(machine) == before
    (programs.directory / "update-grub").write_text(good)
    preparation.unprepare(machine.host)


def test_units_that_are_missing_are_installed_and_taken_back(machine: Machine) -> None:
    missing = machine.root / units.TARGET.lstrip("/") / pidfloor.UNIT
    missing.unlink()
    done = preparation.prepare(machine.host, None)
    assert f"{units.TARGET}/{pidfloor.UNIT}" in done.files
    assert missing.read_text() == (units.SOURCES / pidfloor.UNIT).read_text()
    preparation.unprepare(machine.host)
    assert not missing.exists()


def test_without_the_command_the_units_would_call_nothing(machine: Machine) -> None:
    (machine.root / "usr/local/sbin/seamless-upgrade").unlink()
    with pytest.raises(Refusal, match="not installed"):
        preparation.prepare(machine.host, None)


def test_somebody_removed_the_drop_in(machine: Machine, programs: Programs) -> None:
    first = preparation.prepare(machine.host, None)
    (machine.root / grub.DROP_IN.lstrip("/")).unlink()
    loaders.run_program(programs, "update-grub")
    again = preparation.prepare(machine.host, None)
    assert again.changed
    assert again.spans == first.spans
    assert loader.find(machine.host).is_set([str(span) for span in first.spans])


def test_the_record_was_lost(machine: Machine) -> None:
    first = preparation.prepare(machine.host, None)
    Record.remove(machine.host)
    boot(machine)
    again = preparation.prepare(machine.host, None)
    assert not again.by_hand
    assert again.spans == first.spans
    Record.remove(machine.host)
    assert preparation.unprepare(machine.host).changed
    assert not (machine.root / grub.DROP_IN.lstrip("/")).exists()


def test_an_unknown_boot_loader_is_told_what_to_add(machine: Machine) -> None:
    (machine.root / "boot/grub/grub.cfg").unlink()
    before = tree(machine)
    with pytest.raises(Refusal, match="neither GRUB nor systemd-boot") as told:
        preparation.prepare(machine.host, None)
    assert re.search(r"by hand.*memmap=256M!\S+ memmap=\S+!\S+$", str(told.value.hint))
    assert tree(machine) == before


def test_other_entries_of_memmap_count(machine: Machine) -> None:
    machine.file("/proc/cmdline", "memmap=4K$0x1000,4K$0x2000 memmap=4K#0x3000")
    with pytest.raises(Refusal, match="3 entries"):
        preparation.prepare(machine.host, None)


def test_systemd_boot(tmp_path: Path, programs: Programs) -> None:
    machine = Machine(tmp_path / "host")
    firmware.build(machine, firmware.pc(14 * GIB))
    machine.file("/proc/cmdline", "initrd=x root=/dev/vda2 rw")
    loaders.install_systemd_boot(machine, programs)
    machine.file("/usr/local/sbin/seamless-upgrade", "")
    before = tree(machine)
    done = preparation.prepare(machine.host, "20%")
    assert done.boot_loader == "kernel-install"
    assert "/etc/kernel/cmdline" in done.files
    assert len(done.commands) == 2
    for line in loaders.options(machine):
        assert tuple(ranges.parse_command_line(line)) == done.spans
    assert preparation.prepare(machine.host, None).changed is False
    preparation.unprepare(machine.host)
    assert tree(machine) == before


def test_what_is_missing_is_warned_of(machine: Machine, programs: Programs) -> None:
    (programs.directory / "ndctl").unlink()
    programs.add("modprobe", "echo 'Module kmem not found' >&2; exit 1")
    done = preparation.prepare(machine.host, None, dry_run=True)
    assert [warning.split()[0] for warning in done.warnings] == ["ndctl", "this"]


def test_answers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "privileged", lambda: None)
    monkeypatch.setattr("upgrade.cli.prepare.Host", lambda: machine.host)
    monkeypatch.setattr("upgrade.cli.unprepare.Host", lambda: machine.host)
    assert cli.main(["prepare", "--dry-run", "--json", "--memory", "2G"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema_version"] == 1
    assert (data["changed"], data["dry_run"], data["reboot_needed"]) == (True, True, True)
    assert [each["purpose"] for each in data["ranges"]] == ["store", "frames"]
    assert data["ranges"][1]["node"] == 0
    assert data["arguments"] == " ".join(each["argument"] for each in data["ranges"])
    assert cli.main(["prepare"]) == 0
    assert "one ordinary reboot" in capsys.readouterr().out
    assert cli.main(["prepare"]) == 0
    assert "Nothing to do: prepared already; it takes one ordinary reboot" in capsys.readouterr().out
    assert cli.main(["unprepare"]) == 0
    assert "Taken back; no reboot is needed" in capsys.readouterr().out
    assert cli.main(["unprepare", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert cli.main(["prepare", "--memory", "lots", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["subject"] == "--memory"


def test_the_text_of_ranges_by_hand(machine: Machine) -> None:
    machine.file("/proc/cmdline", "memmap=256M!4G")
    text = "\n".join(verb.render(preparation.prepare(machine.host, None, dry_run=True)))
    assert "memmap=256M!4G" in text


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 2}', '{"schema_version": 1, "future": 1}'])
def test_a_record_that_cannot_be_understood(machine: Machine, text: str) -> None:
    machine.file(records.FILE, text)
    with pytest.raises(UpgradeError, match="cannot be understood"):
        preparation.prepare(machine.host, None)


def fail_after(file: Path, text: str | None) -> None:
    with files.replaced(file, text):
        assert files.read(file) == text
        raise UsageError("later")


def test_files_are_whole_or_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "deep/file"
    with pytest.raises(UsageError):
        fail_after(file, "new")
    assert not file.exists()
    files.write(file, "old", 0o600)
    with pytest.raises(UsageError):
        fail_after(file, None)
    assert file.read_text() == "old"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(("last", "expected"), [(150, None), (100000, 100000)])
def test_the_unit_raises_pids_and_never_lowers_them(tmp_path: Path, last: int, expected: int | None) -> None:
    text = (units.SOURCES / pidfloor.UNIT).read_text()
    found = re.search(r"^ExecStart=/bin/sh -c '(.*)'$", text, re.MULTILINE)
    assert found
    knob = tmp_path / "ns_last_pid"
    knob.write_text(f"{last}\n")
    script = found[1].replace("$$", "$").replace("/proc/sys/kernel/ns_last_pid", str(knob))
    subprocess.run(["sh", "-c", script], check=True)
    cpus = int(subprocess.run(["getconf", "_NPROCESSORS_ONLN"], capture_output=True, check=True).stdout)
    assert int(knob.read_text()) == (expected or pidfloor.floor(cpus))


def test_the_floor_is_above_what_check_warns_of() -> None:
    for cpus in (1, 2, 64, 512):
        assert pidfloor.floor(cpus) > plan.PIDS_OF_KERNEL + plan.PIDS_PER_CPU * cpus
        assert pidfloor.floor(cpus) < max(32768, 1024 * cpus), (
            "PID_MAX_DEFAULT, PIDS_PER_CPU_DEFAULT of the kernel"
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="others see no addresses in /proc/iomem")
def test_this_machine_can_be_read() -> None:
    found = memory.read(Host())
    assert found.ram_bytes > 0
    assert all(node.free for node in found.nodes)
