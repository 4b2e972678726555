# SPDX-License-Identifier: MIT
"""Tests of the checks ``host.*``: each passes and does not, on a machine made of files."""

import fcntl
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders.checks import complete, findings, only, situation
from builders.criu import FakeCriu
from builders.host import Machine
from builders.programs import Programs
from builders.session import container

from upgrade import criu as criu_client
from upgrade import linux, paths, plan
from upgrade.check import host
from upgrade.check.host import engines, installed, moment, resources, services, updates
from upgrade.check.model import Finding, Status
from upgrade.check.situation import Situation, Unknown
from upgrade.engines.base import Container
from upgrade.errors import DependencyMissing, ExitStatus, Refusal

DOCKER, PODMAN, POD = "a1" * 32, "b2" * 32, "c3" * 32


def test_the_family_is_complete() -> None:
    assert {check.id for check in host.CHECKS} == {
        "host.programs",
        "host.criu",
        "host.units",
        "host.space",
        "host.clock",
        "host.packages",
        "host.updates",
        "host.session",
        "host.containers",
        "host.services",
    }


@pytest.fixture
def systemd(machine: Machine) -> Machine:
    """Return a machine with systemd."""
    machine.file(f"{installed.SYSTEMD}/x", "")
    return machine


def test_programs(systemd: Machine, programs: Programs) -> None:
    here = situation(systemd.host)
    missing = findings(installed.programs, here)
    assert [found.subject for found in missing] == list(plan.PROGRAMS)
    assert {found.exit_status for found in missing} == {ExitStatus.DEPENDENCY_MISSING}
    assert all(map(complete, missing))
    for program in plan.PROGRAMS:
        programs.add(program)
    assert only(installed.programs, here, Status.PASS).seen.startswith("criu, kexec, nft")
    (programs.directory / "nft").unlink()
    assert only(installed.programs, here, Status.FAIL).remedy == "apt-get install nftables"


def test_programs_for_frames_only_where_there_are_ranges(systemd: Machine, programs: Programs) -> None:
    for program in plan.PROGRAMS:
        programs.add(program)
    systemd.file("/proc/cmdline", "quiet memmap=128M!4G memmap=1G!5G")
    assert [f.subject for f in findings(installed.programs, situation(systemd.host))] == list(
        plan.FRAMES_PROGRAMS
    )
    assert only(installed.programs, situation(systemd.host, pages="copy"), Status.PASS)


def test_without_systemd_there_is_no_upgrade(machine: Machine, programs: Programs) -> None:
    for program in plan.PROGRAMS:
        programs.add(program)
    first, second = findings(installed.programs, situation(machine.host))
    assert (first.status, first.subject, first.seen) == (Status.FAIL, "systemd", "does not run")
    assert second.status is Status.PASS


def test_criu_and_its_library(machine: Machine, criu: FakeCriu, monkeypatch: pytest.MonkeyPatch) -> None:
    here = situation(machine.host)
    found = only(installed.criu, here, Status.PASS)
    assert found.seen == "4.1.1, pycriu 4.1.1"
    assert found.source.endswith("pycriu/version.py")
    monkeypatch.setattr(installed, "_pycriu_version", lambda: ("3.17.1", "/usr/lib/version.py"))
    assert only(installed.criu, here, Status.WARN).seen == "3.17.1, but CRIU is 4.1.1"
    monkeypatch.setattr(installed, "_pycriu_version", lambda: (None, "/usr/lib/version.py"))
    assert only(installed.criu, here, Status.PASS)


@pytest.mark.parametrize(
    "error", [ImportError("No module named 'google'"), TypeError("Descriptors cannot be")]
)
def test_a_library_that_cannot_be_imported(
    machine: Machine, criu: FakeCriu, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(criu_client, "messages", fail)
    found = only(installed.criu, situation(machine.host), Status.FAIL)
    assert str(error) in found.seen


def test_criu_is_missing(machine: Machine, programs: Programs) -> None:
    with pytest.raises(DependencyMissing):
        findings(installed.criu, situation(machine.host))


def test_units(machine: Machine) -> None:
    here = situation(machine.host)
    names = [paths.RUN_UNIT, paths.RESTORE_UNIT, paths.PAGES_UNIT]
    assert [f.subject for f in findings(installed.units, here)] == names
    for name in names:
        machine.file(f"/usr/local/lib/systemd/system/{name}", "[Unit]")
    found = only(installed.units, here, Status.FAIL)
    assert (found.subject, found.seen) == (paths.RESTORE_UNIT, "is not enabled")
    wants = machine.root / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True)
    os.symlink(f"/usr/local/lib/systemd/system/{paths.RESTORE_UNIT}", wants / paths.RESTORE_UNIT)
    assert only(installed.units, here, Status.PASS)
    os.symlink("/dev/null", machine.root / "etc/systemd/system" / paths.RUN_UNIT)
    found = only(installed.units, here, Status.FAIL)
    assert (found.seen, found.remedy) == ("is masked", f"systemctl unmask {paths.RUN_UNIT}")


def disk(
    monkeypatch: pytest.MonkeyPatch, free: int, *, flag: int = 0, files: int = 100, left: int = 50
) -> None:
    found = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_flag=flag, f_files=files, f_favail=left)
    monkeypatch.setattr(os, "statvfs", lambda _path: found)


def test_space(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here = situation(machine.host)
    disk(monkeypatch, 100 << 20)
    assert [f.seen for f in findings(resources.space, here)] == ["100 MiB free"] * 2
    disk(monkeypatch, 100 << 20, files=0, left=0)  # a file system that makes inodes as it needs them
    assert {f.status for f in findings(resources.space, here)} == {Status.PASS}
    disk(monkeypatch, 3 << 20)
    assert {f.status for f in findings(resources.space, here)} == {Status.WARN}
    for broken in ({"free": 4096}, {"free": 1 << 30, "flag": os.ST_RDONLY}, {"free": 1 << 30, "left": 0}):
        disk(monkeypatch, **broken)
        found = findings(resources.space, here)
        assert [f.subject for f in found] == [str(paths.STATE), str(paths.RUNTIME)]
        assert {f.status for f in found} == {Status.FAIL}
        assert all(map(complete, found))


def test_space_is_looked_for_where_it_will_be_needed(machine: Machine) -> None:
    machine.file("/var/lib/x", "")
    state, _runtime = findings(resources.space, situation(machine.host))
    assert state.source == str(machine.root / "var/lib")


def test_clock(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here = situation(machine.host)
    file = f"{resources.CLOCK_SOURCES}/available_clocksource"
    monkeypatch.setattr(linux, "clock_is_synchronised", lambda: True)
    for sources in ("kvm-clock tsc acpi_pm", "hyperv_clocksource_tsc_page acpi_pm"):
        machine.file(file, sources)
        assert only(resources.clock, here, Status.PASS).seen.endswith("NTP keeps it right")
    monkeypatch.setattr(linux, "clock_is_synchronised", lambda: False)
    assert "does not keep it right" in only(resources.clock, here, Status.PASS).seen
    machine.file(file, "hpet acpi_pm")
    assert "hpet, acpi_pm" in only(resources.clock, here, Status.WARN).seen


def test_the_real_clock_answers() -> None:
    assert linux.clock_is_synchronised() in (True, False)


def lock_line(file: Path, kind: str = "POSIX  ADVISORY  WRITE", pid: int = 4242, arrow: str = "") -> str:
    status = file.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return f"3: {arrow}{kind} {pid} {device}:{status.st_ino} 0 EOF"


def test_packages(machine: Machine) -> None:
    here = situation(machine.host)
    assert only(moment.packages, here, Status.PASS)
    lock = machine.file("/var/lib/dpkg/lock-frontend", "")
    other = machine.file("/var/lib/dpkg/other", "")
    machine.file("/proc/4242/comm", "unattended-upgr")
    machine.file(moment.LOCKS, lock_line(other))
    assert only(moment.packages, here, Status.PASS)
    for kind in ("POSIX  ADVISORY  WRITE", "OFDLCK ADVISORY  WRITE", "FLOCK  ADVISORY  WRITE"):
        machine.file(moment.LOCKS, f"{lock_line(other)}\n{lock_line(lock, kind)}")
        found = only(moment.packages, here, Status.FAIL)
        assert found.seen == "works just now (PID 4242, unattended-upgr)"
        assert found.source == "/var/lib/dpkg/lock-frontend"
    machine.file(moment.LOCKS, lock_line(lock, arrow="-> "))  # who waits holds nothing
    assert only(moment.packages, here, Status.PASS)
    machine.file(moment.LOCKS, "")
    machine.file("/var/lib/pacman/db.lck", "")
    assert only(moment.packages, here, Status.FAIL).source == "/var/lib/pacman/db.lck"


def test_a_real_lock_is_seen(machine: Machine) -> None:
    """As dpkg takes it, seen through the real /proc/locks."""
    lock = machine.file("/var/lib/dpkg/lock-frontend", "")
    os.symlink("/proc/locks", machine.root / "proc/locks")
    with lock.open("w") as file:
        request = struct.pack("hhllhh", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0, 0)
        fcntl.fcntl(file, fcntl.F_SETLK, request)
        found = only(moment.packages, situation(machine.host), Status.FAIL)
        assert f"PID {os.getpid()}," in found.seen
    assert only(moment.packages, situation(machine.host), Status.PASS)


def test_packages_that_were_cut_off(machine: Machine) -> None:
    here = situation(machine.host)
    sound = "Package: bash\nStatus: install ok installed\nVersion: 5\n"
    machine.file(moment.DPKG_STATUS, sound)
    (machine.root / moment.DPKG_UPDATES.lstrip("/")).mkdir(parents=True)
    assert only(moment.packages, here, Status.PASS)
    machine.file(
        moment.DPKG_STATUS, f"{sound}\nPackage: criu\nStatus: install ok half-configured\nVersion: 4\n"
    )
    assert only(moment.packages, here, Status.WARN).seen == "criu is half-configured"
    machine.file(moment.DPKG_STATUS, sound)
    machine.file(f"{moment.DPKG_UPDATES}/0001", "")
    found = only(moment.packages, here, Status.WARN)
    assert (found.seen, found.remedy) == ("dpkg was cut off", "dpkg --configure -a")


def test_an_upgrade_that_has_ended(machine: Machine, here: Path) -> None:
    machine.file(str(paths.UNDO), "")
    machine.file(str(paths.PLAN), "{}")  # after an ordinary boot it is of no use to anybody
    assert only(moment.unfinished, situation(machine.host), Status.PASS)


def test_an_upgrade_that_runs(machine: Machine, here: Path) -> None:
    machine.file(f"/sys/fs/cgroup/system.slice/{paths.RUN_UNIT}/cgroup.events", "populated 1\nfrozen 0")
    machine.file("/proc/self/cgroup", "0::/user.slice/session-1.scope")
    assert only(moment.unfinished, situation(machine.host), Status.FAIL).subject == paths.RUN_UNIT
    machine.file("/proc/self/cgroup", f"0::/system.slice/{paths.RUN_UNIT}")  # that is us
    assert only(moment.unfinished, situation(machine.host), Status.PASS)


def test_an_upgrade_that_was_killed(machine: Machine, here: Path) -> None:
    machine.file(str(paths.UNDO), '{"action": "unload", "arguments": {}}')
    with pytest.raises(Refusal, match="not been undone altogether: unload") as caught:
        findings(moment.unfinished, situation(machine.host))
    assert "seamless-upgrade recover" in str(caught.value.hint)


def test_an_upgrade_whose_containers_are_not_back(machine: Machine, here: Path) -> None:
    machine.file("/proc/cmdline", "quiet seamless_upgrade.session=one")
    assert only(moment.unfinished, situation(machine.host), Status.PASS)
    machine.file(str(paths.PLAN), "{}")
    found = only(moment.unfinished, situation(machine.host), Status.FAIL)
    assert (found.subject, found.seen) == ("session one", "has not been restored to its end")
    machine.file(f"/sys/fs/cgroup/system.slice/{paths.RESTORE_UNIT}/cgroup.events", "populated 1\nfrozen 0")
    assert only(moment.unfinished, situation(machine.host), Status.FAIL).remedy == "wait some seconds"
    machine.file(str(paths.PAGES), "{}")
    with pytest.raises(Refusal, match="still brings the memory"):
        findings(moment.unfinished, situation(machine.host))


def keeping(machine: Machine, *kept: Container) -> Situation:
    """Return a situation in which these containers are preserved."""
    where = situation(machine.host, all=True)
    if kept:
        where.__dict__["containers"] = list(kept)  # as the cached property keeps it
    return where


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (f"/system.slice/docker-{DOCKER}.scope", "docker", "a1a1a1a1a1a1"),
        (f"/docker/{DOCKER}", "docker", "a1a1a1a1a1a1"),
        (f"/machine.slice/libpod-{PODMAN}.scope", "podman", "b2b2b2b2b2b2"),
        (f"/machine.slice/libpod-payload-{PODMAN}", "podman", "b2b2b2b2b2b2"),
        (f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{POD}.scope", "Kubernetes", "c3c3c3c3c3c3"),
        (f"/kubepods/besteffort/pod1/{POD}", "Kubernetes", "c3c3c3c3c3c3"),
        (f"/kubepods.slice/crio-{POD}.scope", "Kubernetes", "c3c3c3c3c3c3"),
        (f"/system.slice/nerdctl-{POD}.scope", "containerd", "c3c3c3c3c3c3"),
        (f"/default/{POD}", "containerd", "c3c3c3c3c3c3"),
        ("/lxc.payload.web", "LXC", "web"),
        ("/lxc/web", "LXC", "web"),
        ("/machine.slice/systemd-nspawn@web.service", "systemd-nspawn", "web"),
        (r"/machine.slice/machine-qemu\x2d1\x2dweb.scope", "virtual machine", "1-web"),
    ],
)
def test_containers_of_engines(machine: Machine, path: str, kind: str, name: str) -> None:
    machine.cgroup("/system.slice/cron.service", [400])
    machine.cgroup(path)
    machine.cgroup(f"{path}/init.scope", [500])
    found = only(engines.forgotten, keeping(machine), Status.WARN)
    assert (found.subject, found.seen) == (kind, f"1 not preserved: {name}")
    machine.cgroup(f"{path}/init.scope", [])  # left behind, nobody in it
    assert only(engines.forgotten, keeping(machine), Status.PASS)


@pytest.mark.parametrize(
    "path",
    [
        "/lxc.monitor.web",
        f"/machine.slice/libpod-conmon-{PODMAN}.scope",
        f"/system.slice/docker-{DOCKER[:-1]}.scope",
        "/system.slice/docker.service",
        "/workload/redis",
    ],
)
def test_what_is_no_container(machine: Machine, path: str) -> None:
    machine.cgroup(path, [500])
    assert only(engines.forgotten, keeping(machine), Status.PASS).seen == "none runs"


def test_what_is_preserved_is_not_forgotten(machine: Machine) -> None:
    docker, inner = f"/system.slice/docker-{DOCKER}.scope", f"/kubepods/pod1/{POD}/inner"
    machine.cgroup(docker, [500])
    machine.cgroup(f"/kubepods/pod1/{POD}", [])
    machine.cgroup(inner, [501])
    web, task = container(docker), container(inner)
    assert only(engines.forgotten, keeping(machine, web, task), Status.PASS)
    assert only(engines.forgotten, keeping(machine, web), Status.WARN).subject == "Kubernetes"
    assert only(engines.forgotten, keeping(machine, task), Status.WARN).subject == "docker"


def test_containers_have_the_names_that_users_know(machine: Machine) -> None:
    machine.cgroup(f"/docker/{DOCKER}", [500])
    machine.file(f"/var/lib/docker/containers/{DOCKER}/config.v2.json", '{"Name": "/web"}')
    found = only(engines.forgotten, keeping(machine), Status.WARN)
    assert found.seen == "1 not preserved: web"
    assert "--cold docker" in found.remedy
    machine.file(f"/var/lib/docker/containers/{DOCKER}/config.v2.json", "{")
    assert only(engines.forgotten, keeping(machine), Status.WARN).seen == "1 not preserved: a1a1a1a1a1a1"


def test_many_containers_are_counted(machine: Machine) -> None:
    for number in range(11):
        machine.cgroup(f"/lxc/c{number:02}", [500 + number])
    seen = only(engines.forgotten, keeping(machine), Status.WARN).seen
    assert seen.startswith("11 not preserved: c00, c01,")
    assert seen.endswith("c07 and 3 more")


def test_containers_of_runc(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    podman = f"/machine.slice/libpod-{PODMAN}.scope"
    machine.cgroup(podman, [500])
    running = [
        Container("web", "runc", "/web", 1, False, False),
        Container("db", "runc", podman, 2, False, False),
    ]
    monkeypatch.setattr("upgrade.engines.runc.RuncEngine.available", lambda _self: running)
    found = findings(engines.forgotten, keeping(machine))
    assert [(f.subject, f.seen) for f in found] == [
        ("podman", "1 not preserved: b2b2b2b2b2b2"),
        ("runc", "1 not preserved: web"),
    ]
    assert findings(engines.forgotten, keeping(machine, running[0]))[0].subject == "podman"


UNITS = {
    "cron.service": {"UnitFileState": "enabled", "WantedBy": "multi-user.target"},
    "dbus.service": {"UnitFileState": "static"},
    "redis.service": {"UnitFileState": "disabled"},
    "run-u7.service": {"UnitFileState": "transient"},
    "serial-getty@ttyS0.service": {"UnitFileState": "disabled", "WantedBy": "getty.target"},
    "setup.service": {"UnitFileState": "disabled", "Type": "oneshot"},
    "spice.service": {"UnitFileState": "indirect", "TriggeredBy": "spice.socket"},
    "systemd-journald.service": {"UnitFileState": "static"},
    "seamless-upgrade.service": {"UnitFileState": "static"},
}


def units(programs: Programs, *names: str) -> None:
    """Make a systemctl that knows these services."""
    blocks = []
    for name in names:
        all_of = {"Id": name, "Type": "simple", **UNITS[name]}
        blocks.append("\n".join(f"{key}={all_of.get(key, '')}" for key in services.PROPERTIES))
    listed = "\n".join(f"{name} loaded active running Something" for name in names)
    shown = programs.directory / "shown"
    shown.write_text("\n\n".join(blocks) + "\n")
    programs.add(
        "systemctl",
        f"""case "$1" in
        list-units) echo '{listed}';;
        show)
            case "$*" in
            *sysinit.target*) echo 'systemd-journald.service dev-hugepages.mount';;
            *) cat {shown};;
            esac;;
        esac""",
    )


def test_services_that_come_back(systemd: Machine, programs: Programs) -> None:
    units(programs, "cron.service", "serial-getty@ttyS0.service", "setup.service", "spice.service")
    found = only(services.services, keeping(systemd), Status.PASS)
    assert found.seen.startswith("4 services (cron, serial-getty@ttyS0, setup, spice) are stopped")
    show = next(words for words in programs.calls("systemctl") if "--" in words)
    assert show[-4:] == ["cron.service", "serial-getty@ttyS0.service", "setup.service", "spice.service"]


def test_services_that_stay_are_not_asked_about(systemd: Machine, programs: Programs) -> None:
    units(programs, "dbus.service", "systemd-journald.service", "redis.service")
    kept = container("/system.slice/redis.service")
    assert only(services.services, keeping(systemd, kept), Status.PASS).seen.startswith("0 services are")
    assert not [words for words in programs.calls("systemctl") if "--" in words]


def test_services_that_would_not_come_back(systemd: Machine, programs: Programs) -> None:
    units(programs, "cron.service", "redis.service", "run-u7.service", "seamless-upgrade.service")
    found = only(services.services, keeping(systemd), Status.WARN)
    assert found.seen == "2 services (redis, run-u7) would not come back"
    assert found.remedy.startswith("systemctl enable redis.service")


def test_services_that_are_not_stopped(systemd: Machine, programs: Programs) -> None:
    units(programs, "cron.service")
    found = only(services.services, situation(systemd.host, all=True, quiesce=False), Status.WARN)
    assert found.seen == "1 service (cron) end without being stopped (--no-quiesce)"


def test_services_without_systemd(machine: Machine) -> None:
    with pytest.raises(Unknown):
        findings(services.services, keeping(machine))


def test_services_of_a_systemd_that_does_not_answer(systemd: Machine, programs: Programs) -> None:
    programs.add("systemctl", "echo 'Failed to connect to bus' >&2; exit 1")
    with pytest.raises(Unknown, match="Failed to connect to bus"):
        findings(services.services, keeping(systemd))


def test_nothing_is_written(systemd: Machine, programs: Programs, criu: FakeCriu) -> None:
    """Every check of the family, on one machine."""
    units(programs, "cron.service")
    systemd.file(f"{resources.CLOCK_SOURCES}/available_clocksource", "tsc")
    before = sorted(systemd.root.rglob("*"))
    said: list[Finding] = []
    for check in host.CHECKS:
        said += check.run(keeping(systemd))
    assert len(said) >= len(host.CHECKS)
    assert sorted(systemd.root.rglob("*")) == before
    assert systemd.writes == []
    assert sys.modules["pycriu.rpc_pb2"]


LIST = "/var/lib/apt/lists/deb.debian.org_debian_dists_{suite}_main_binary-amd64_Packages"
OTHERS = "Package: aa\nVersion: 1\n\nPackage: criu-dev\nVersion: 9\n\n"


def packages_of(machine: Machine, version: str = "4.1.1-1", state: str = "install ok installed") -> None:
    stanza = f"Package: criu\nStatus: {state}\nPriority: optional\nVersion: {version}\n"
    machine.file("/var/lib/dpkg/status", f"{OTHERS}{stanza}")


def listed(machine: Machine, version: str, suite: str = "trixie", release: str = "Suite: stable") -> None:
    text = f"{OTHERS}Package: criu\nArchitecture: amd64\nVersion: {version}\n\nPackage: zz\nVersion: 8\n"
    path = LIST.format(suite=suite)
    machine.file(path, text)
    machine.file(path.replace("_main_binary-amd64_Packages", "_InRelease"), f"Origin: Debian\n{release}\n")


@pytest.mark.parametrize(
    ("version", "status"),
    [("4.1.1-1", Status.PASS), ("4.1.1-1+deb13u1", Status.WARN), ("4.1~a", Status.PASS)],
)
def test_updates(machine: Machine, version: str, status: Status) -> None:
    packages_of(machine)
    listed(machine, "4.0-1", "sid")
    listed(machine, version)
    found = only(updates.updates, situation(machine.host), status)
    if status is Status.WARN:
        assert (found.subject, version in found.seen) == ("criu", True)
        assert found.source == LIST.format(suite="trixie")


def test_backports_are_no_updates(machine: Machine) -> None:
    packages_of(machine)
    listed(machine, "4.1.1-1")
    listed(machine, "5.0-1", "trixie-backports", "NotAutomatic: yes\nButAutomaticUpgrades: yes")
    only(updates.updates, situation(machine.host), Status.PASS)


def test_what_is_not_installed_has_no_updates(machine: Machine) -> None:
    packages_of(machine, state="deinstall ok config-files")
    listed(machine, "9-1")
    only(updates.updates, situation(machine.host), Status.PASS)


def test_without_lists_updates_are_not_known(machine: Machine) -> None:
    assert "dpkg" in only(updates.updates, situation(machine.host), Status.SKIP).seen
    packages_of(machine)
    assert "apt-get update" in only(updates.updates, situation(machine.host), Status.SKIP).remedy
    machine.file(LIST.format(suite="trixie"), "")
    only(updates.updates, situation(machine.host), Status.PASS)
