# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.quiesce`` with a systemctl that is recorded."""

import os
from fnmatch import fnmatch

import pytest
from builders.host import Machine
from builders.programs import Programs

from upgrade.kexec import quiesce
from upgrade.process import CommandFailed

UNITS = """\
cron.service          loaded active running Regular background program processing daemon
ssh.socket            loaded active listening OpenBSD Secure Shell server socket
systemd-networkd.service loaded active running Network Configuration
"""


def meminfo(machine: Machine, dirty_kib: int, writeback_kib: int) -> None:
    machine.file(
        "/proc/meminfo",
        f"MemTotal:        2030012 kB\nDirty:       {dirty_kib} kB\nWriteback:   {writeback_kib} kB\n"
        "WritebackTmp:          7 kB\nHugePages_Total:       0",
    )


def test_what_is_dirty_and_what_is_being_written(machine: Machine) -> None:
    meminfo(machine, 100, 20)
    assert quiesce.dirty_bytes(machine.host) == 120 * 1024


def test_writing_back_goes_on_until_little_is_left(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [(5000, 10), (100, 10), (0, 3), (0, 0)]

    def sync() -> None:
        meminfo(machine, *left.pop(0))

    monkeypatch.setattr(os, "sync", sync)
    assert quiesce.write_back(machine.host, 4096, 10) == 3 * 1024
    assert left == [(0, 0)]


def test_writing_back_is_bounded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sync", lambda: meminfo(machine, 5000, 0))
    assert quiesce.write_back(machine.host, 4096, 0.05) == 5000 * 1024


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/redis.service", "redis.service"),
        ("/system.slice/docker.service/abc/def", "docker.service"),
        ("/machine.slice/libpod-0a.scope/container", "libpod-0a.scope"),
        ("/user.slice/user-0.slice/user@0.service/app.slice/x.service", "user@0.service"),
        ("/workload/redis", None),
        ("/", None),
        ("/a.service.d/b", None),
    ],
)
def test_the_unit_of_a_cgroup(cgroup: str, unit: str | None) -> None:
    assert quiesce.unit_of(cgroup) == unit


def test_active_units_are_named(programs: Programs) -> None:
    programs.add("systemctl", f"cat <<'E'\n{UNITS}\nE")
    assert quiesce.active_units() == ["cron.service", "ssh.socket", "systemd-networkd.service"]
    assert "--state=active" in programs.calls()[0]


def test_the_target_keeps_the_network_and_the_containers(machine: Machine, programs: Programs) -> None:
    programs.add(
        "systemctl", 'case "$1" in list-units) echo "dbus.service loaded active running D-Bus";; esac'
    )
    quiesce.write_target(machine.host, ["/system.slice/redis.service", "/workload/x", "/m.slice/c.scope"])
    text = machine.host.read(quiesce.TARGET_FILE)
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert settings["Wants"].split() == ["dbus.service", "redis.service", "c.scope"]
    assert settings["AllowIsolate"] == "yes"
    assert settings["DefaultDependencies"] == "no"
    asked, reloaded = programs.calls()
    assert set(quiesce.KEPT) <= set(asked)
    assert reloaded == ["systemctl", "daemon-reload"]


def test_the_target_is_a_unit_file_that_systemd_takes(machine: Machine, programs: Programs) -> None:
    programs.add("systemctl")
    quiesce.write_target(machine.host, [])
    text = machine.host.read(quiesce.TARGET_FILE)
    assert text.startswith("[Unit]\n")
    assert "Wants=\n" in text + "\n"


def test_isolating_fails_aloud(programs: Programs) -> None:
    programs.add("systemctl", "echo 'Operation refused' >&2; exit 4")
    with pytest.raises(CommandFailed, match="Operation refused"):
        quiesce.isolate()
    assert programs.calls() == [["systemctl", "isolate", quiesce.TARGET]]


def test_everything_comes_back_even_if_one_does_not_start(machine: Machine, programs: Programs) -> None:
    programs.add("systemctl", '[ "$1" != start ] || exit 1')
    file = machine.file(quiesce.TARGET_FILE, "[Unit]")
    quiesce.resume(["cron.service", "seamless-upgrade.service", "-.odd.socket"], machine.host)
    assert programs.calls()[2:] == [
        ["systemctl", "start", "--", "-.odd.socket", "cron.service"],
        ["systemctl", "daemon-reload"],
    ]
    assert not file.exists()


def test_what_is_kept_are_units() -> None:
    suffixes = (".service", ".socket", ".target")
    assert all(unit.endswith(suffixes) for unit in quiesce.KEPT)
    assert len(set(quiesce.KEPT)) == len(quiesce.KEPT)
    for unit in ("ssh.service", "cron.service", "docker.service"):
        assert not any(fnmatch(unit, kept) for kept in quiesce.KEPT)


def test_stops_that_wait_in_the_queue_are_cancelled(machine: Machine, programs: Programs) -> None:
    """systemd goes on with an isolate whose client was killed: what is still active would stop afterwards."""
    jobs = "11 slow.service stop running\n12 cron.service stop waiting\n13 other.service stop waiting\n"
    jobs += "14 cron.socket start waiting\n"
    programs.add("systemctl", f"[ \"$1\" != list-jobs ] || printf '{jobs}'")
    quiesce.resume(["cron.service", "cron.socket", "slow.service"], machine.host)
    assert ["systemctl", "cancel", "--", "12"] in programs.calls()
