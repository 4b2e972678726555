# SPDX-License-Identifier: MIT
"""What goes on just now that an upgrade would cut off."""

import os
import re
from collections.abc import Iterator

from upgrade import cgroup, paths, plan
from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation
from upgrade.host import Host
from upgrade.kexec.cmdline import session_of

LOCKS = "/proc/locks"
# Held (fcntl or flock) while packages are installed: dpkg and apt, rpm and dnf, zypper
LOCK_FILES = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/rpm/.rpm.lock",
    "/usr/lib/sysimage/rpm/.rpm.lock",
    "/run/zypp.pid",
)
# There while packages are installed: pacman
MARK_FILES = ("/var/lib/pacman/db.lck",)
DPKG_STATUS = "/var/lib/dpkg/status"
DPKG_UPDATES = "/var/lib/dpkg/updates"
BROKEN = re.compile(
    r"^Package: (\S+)\nStatus: \S+ \S+ (half-installed|unpacked|half-configured|triggers-awaited)$",
    re.MULTILINE,
)
SHOWN = 5


def packages(situation: Situation) -> Iterator[Finding]:
    """Look for a package manager that works, or was cut off."""
    host = situation.host
    working = list(_working(host))
    for file, who in working:
        yield failed(
            "package manager",
            f"works just now ({who})",
            source=file,
            reason="kernel, initrd and programs may be half written",
            remedy="wait until it has ended",
        )
    if working:
        return
    broken = BROKEN.findall(host.read_or(DPKG_STATUS, ""))
    if broken or host.list(DPKG_UPDATES):
        named = ", ".join(f"{name} is {state}" for name, state in broken[:SHOWN]) or "dpkg was cut off"
        yield warned(
            "packages",
            named + (f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""),
            source=DPKG_STATUS if broken else DPKG_UPDATES,
            reason="files of different versions may lie side by side",
            remedy="dpkg --configure -a",
        )
    else:
        yield passed("packages", "none is being installed", LOCKS)


def _working(host: Host) -> Iterator[tuple[str, str]]:
    """Yield what shows that packages are being installed, and by whom."""
    for file in MARK_FILES:
        if host.exists(file):
            yield file, "it left its mark"
    held = _locks(host)
    for file in LOCK_FILES:
        try:
            status = os.stat(host.path(file))
        except FileNotFoundError:
            continue
        device = (os.major(status.st_dev), os.minor(status.st_dev))
        for where, inode, pid in held:
            # btrfs and overlayfs show another device than stat(2) does, both without a major number
            if inode == status.st_ino and (where == device or where[0] == device[0] == 0):
                yield file, f"PID {pid}, {host.read_or(f'/proc/{pid}/comm', '?')}"
                return


def _locks(host: Host) -> list[tuple[tuple[int, int], int, int]]:
    """Return device, inode and holder of each lock (proc_locks(5)); who only waits is left out."""
    pattern = re.compile(
        r"^\d+: (?:POSIX|FLOCK|OFDLCK) .*?(-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE
    )
    return [
        ((int(major, 16), int(minor, 16)), int(inode), int(pid))
        for pid, major, minor, inode in pattern.findall(host.read_or(LOCKS, "") + "\n")
    ]


def unfinished(situation: Situation) -> Iterator[Finding]:
    """Look for an upgrade that has not ended: before its jump, or after it."""
    host = situation.host
    plan.refuse_unfinished(host)
    session = session_of(host.command_line())
    if upgrades(host):
        yield failed(
            paths.RUN_UNIT,
            "runs",
            source=cgroup.path(f"/system.slice/{paths.RUN_UNIT}"),
            reason="an upgrade goes on already",
            remedy="seamless-upgrade status --wait, or seamless-upgrade abort",
        )
    elif (
        session is not None
        and host.exists(os.fspath(paths.PLAN))
        and cgroup.is_populated(host, f"/system.slice/{paths.RESTORE_UNIT}")
    ):
        yield failed(
            f"session {session}",
            "is just giving the memory ranges back",
            source=os.fspath(paths.PLAN),
            reason="they are not free yet",
            remedy="wait some seconds",
        )
    elif session is not None and host.exists(os.fspath(paths.PLAN)):
        yield failed(
            f"session {session}",
            "has not been restored to its end",
            source=os.fspath(paths.PLAN),
            reason="the ranges may hold the memory of its containers",
            remedy=f"journalctl -u {paths.RESTORE_UNIT} says why; if nobody needs them any more: rm {paths.PLAN}",
        )
    else:
        yield passed("last upgrade", "has ended", os.fspath(paths.RUNTIME))


def upgrades(host: Host) -> bool:
    """Tell whether another process carries out an upgrade: not we, if we are the run's own unit."""
    ours = host.read_or("/proc/self/cgroup", "").endswith(f"/{paths.RUN_UNIT}")
    return not ours and cgroup.is_populated(host, f"/system.slice/{paths.RUN_UNIT}")
