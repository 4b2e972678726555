# SPDX-License-Identifier: MIT
"""A pristine machine with GRUB on its disk: prepared, rebooted through GRUB, upgraded, taken back."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from memfs import ranges
from tests.vm.conftest import WORKLOADS, Guest, Guests
from upgrade.errors import ExitStatus
from upgrade.prepare import grub, pidfloor
from upgrade.prepare import record as records
from upgrade.rehearse import bootable, image, rehearsal, seed, workload
from upgrade.rehearse.machine import Machine, MachineSpec

MEMORY_MIB = 4096
CONTAINER = "/workload/redis"
REBOOT_S = 600  # only ends what hangs: a machine among others may take minutes
# Behind what the distribution's installer would have written.
DEFAULTS = """GRUB_TIMEOUT=0
GRUB_CMDLINE_LINUX_DEFAULT="console=ttyS0 net.ifnames=0"
GRUB_CMDLINE_LINUX="note=a\\\\ b"
GRUB_DISABLE_OS_PROBER=true
"""
STATE = (
    f"cat /boot/grub/grub.cfg; ls /etc/default/grub.d/* {records.FILE} 2>/dev/null || true; "
    "cd /etc/systemd/system; ls *.wants"
)


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a machine without any memmap=, booted by its own boot loader; nothing runs in it."""
    workloads = workload.load_all([WORKLOADS / "redis"])
    disk = image.build(guests.cache, guests.pair, bootable.PACKAGES)
    spec = MachineSpec(
        image=disk,
        kernel=guests.pair[0],
        memory_mib=MEMORY_MIB,
        store_mib=0,
        seed={**seed.code(), **{f"/workloads/{each.name}": each.directory for each in workloads}},
        disk=bootable.build(guests.cache, disk, guests.pair[0], bootable.PACKAGES),
    )
    with Machine.boot(spec, guests.cache) as machine:
        guest = Guest(machine, guests.pair, workloads)
        rehearsal.settle(machine)
        rehearsal.install(machine)
        machine.put("/etc/default/grub", DEFAULTS.encode())
        guest.shell("mkdir -p /boot/grub; update-grub")
        yield guest


def settings(answer: Mapping[str, Any]) -> list[tuple[int, int]]:
    return [(each["start_bytes"], each["size_bytes"]) for each in answer["ranges"]]


def test_prepare_reboot_upgrade_and_back(guest: Guest) -> None:
    machine = guest.machine
    assert "memmap" not in guest.shell("cat /proc/cmdline")
    before = guest.shell(STATE)
    check = guest.command("check")
    print(check.out)
    assert check.status == ExitStatus.REFUSED
    assert "[memory.store]" in check.out

    would = guest.command("prepare", "--dry-run", "--json")
    assert would.status == ExitStatus.DONE, would
    assert guest.shell(STATE) == before
    done = guest.command("prepare", "--json")
    assert done.status == ExitStatus.DONE, done
    assert done.json["warnings"] == []
    assert (done.json["changed"], done.json["reboot_needed"]) == (True, True)
    assert done.json == {**would.json, "dry_run": False}
    assert guest.command("prepare", "--json").json["changed"] is False

    machine.reboot(REBOOT_S)
    rehearsal.settle(machine)
    line = guest.shell("cat /proc/cmdline")
    assert line.startswith("BOOT_IMAGE=/boot/vmlinuz-"), "GRUB booted it"
    found = [(span.start_bytes, span.size_bytes) for span in ranges.parse_command_line(line)]
    assert found == settings(done.json)
    seen = ranges.parse_iomem(guest.shell("cat /proc/iomem"))
    assert [(span.start_bytes, span.size_bytes) for span in seen] == found

    status = guest.command("status", "--json").json
    head = ranges.head_bytes(1 << 30)
    assert [(each["start_bytes"], each["size_bytes"]) for each in status["frames"]] == found[1:]
    assert [each["online_bytes"] for each in status["frames"]] == [size - head for _, size in found[1:]]
    again = guest.command("prepare", "--json").json
    assert (again["changed"], again["reboot_needed"]) == (False, False)
    assert settings(again) == settings(done.json)

    # the newest kernel has been booted: go back to the other one
    running = guest.shell("uname -r").strip()
    target = next(kernel.release for kernel in guest.kernels if kernel.release != running)
    for each in guest.workloads:
        rehearsal.settle_in(machine, each)
        machine.run([f"{rehearsal.HOOKS}/{each.name}/start"], cwd=rehearsal.WORK, timeout=REBOOT_S)
    pids = [int(word) for word in guest.shell(f"cat /sys/fs/cgroup{CONTAINER}/cgroup.procs").split()]
    cpus = int(guest.shell("nproc"))
    assert pids
    assert min(pids) > pidfloor.floor(cpus), guest.shell(f"systemctl status {pidfloor.UNIT}", check=False)
    guest.jump(target, "--pages", "in-place", "--cgroup", CONTAINER)
    waited = guest.command("status", "--wait")
    report = guest.command("report", "--json").json
    assert waited.status == ExitStatus.DONE, (waited, report["reason"])
    assert guest.shell("uname -r").strip() == target
    assert [container["in_place"] for container in report["containers"]] == [True]
    assert guest.verify("redis") == {}

    # in a kernel that an upgrade entered it is known, too
    assert guest.command("prepare", "--json").json["changed"] is False
    gone = guest.command("unprepare", "--json")
    assert gone.status == ExitStatus.DONE, gone
    assert (gone.json["changed"], gone.json["reboot_needed"]) == (True, True)
    assert grub.DROP_IN in gone.json["files"]
    assert guest.shell(STATE) == before
    assert guest.command("unprepare", "--json").json["changed"] is False
