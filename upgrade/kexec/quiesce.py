# SPDX-License-Identifier: MIT
"""A host that is at rest before the freeze: little left to write back, no service that could lose data.

The services are stopped in order by ``systemctl isolate`` of a target of our own, while the containers still run.
"""

import os
import time
from collections.abc import Container, Iterable
from pathlib import Path

from upgrade.host import Host
from upgrade.process import run

TARGET = "seamless-upgrade-quiesce.target"
TARGET_FILE = f"/run/systemd/system/{TARGET}"

# Kept if they are active: the network, the journal, devices and what systemctl itself needs. Mounts, swap, scopes
# and slices are kept by systemd (systemd.unit(5), IgnoreOnIsolate=).
KEPT = (
    "NetworkManager.service",
    "dbus-broker.service",
    "dbus.service",
    "dbus.socket",
    "ifup@*.service",
    "iwd.service",
    "network-online.target",
    "network-pre.target",
    "netavark-dhcp-proxy.service",
    "netavark-dhcp-proxy.socket",
    "network.target",
    "networking.service",
    "nftables.service",
    "openvswitch-switch.service",
    "podman-restart.service",  # stops containers when it is stopped
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-resolved.service",
    "wpa_supplicant.service",
)

ISOLATE_S = 120
RESUME_S = 120

_UNIT = """[Unit]
Description=Only what a seamless kernel upgrade keeps running
DefaultDependencies=no
AllowIsolate=yes
Requires=sysinit.target
After=sysinit.target
Wants={wants}
"""


def write_back(host: Host, limit_bytes: int, timeout_s: float) -> int:
    """Write dirty pages back until few are left; return how many bytes are."""
    deadline = time.monotonic() + timeout_s
    while True:
        os.sync()
        left = dirty_bytes(host)
        if left <= limit_bytes or time.monotonic() > deadline:
            return left


def dirty_bytes(host: Host) -> int:
    """Return what is dirty or being written (``/proc/meminfo``)."""
    memory = host.memory()
    return memory["Dirty"] + memory["Writeback"]


def active_units() -> list[str]:
    """Return the services, sockets, timers and paths that are active."""
    command = ["systemctl", "list-units", "--plain", "--no-legend", "--full", "--state=active"]
    done = run([*command, "--type=service,socket,timer,path,target"])
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]


def unit_of(cgroup: str) -> str | None:
    """Return the unit of systemd that a cgroup lies in; None if systemd does not know it.

    The outermost one: those inside of ``user@UID.service`` belong to another manager.
    """
    for part in cgroup.split("/"):
        if part.endswith((".service", ".scope")):
            return part
    return None


def write_target(host: Host, cgroups: Iterable[str], units: Iterable[str] = ()) -> None:
    """Write the target that keeps the containers in ``cgroups``, and ``units``."""
    keep = [*active_kept(), *(unit for unit in map(unit_of, cgroups) if unit), *units]
    file = host.path(TARGET_FILE)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_UNIT.format(wants=" ".join(keep)))
    run(["systemctl", "daemon-reload"])


def active_kept() -> list[str]:
    """Return the units of :data:`KEPT` that are active."""
    command = ["systemctl", "list-units", "--plain", "--no-legend", "--full", "--state=active", *KEPT]
    return [line.split()[0] for line in run(command).stdout.splitlines() if line.strip()]


def isolate() -> None:
    """Stop every service that is not kept, in systemd's order."""
    run(["systemctl", "isolate", TARGET], timeout=ISOLATE_S)


def _cancel_stops(units: Container[str]) -> None:
    """Cancel what an aborted ``isolate`` has left in the queue: systemd goes on with it when the client has gone."""
    lines = run(["systemctl", "list-jobs", "--plain", "--no-legend"], check=False).stdout.splitlines()
    jobs = [line.split() for line in lines]
    waiting = [j[0] for j in jobs if len(j) == 4 and j[1] in units and j[2:] == ["stop", "waiting"]]
    if waiting:
        run(["systemctl", "cancel", "--", *waiting], check=False)


def resume(units: Iterable[str], host: Host) -> None:
    """Start again what was active, and forget the target.

    Not our own units: the run's is stopping just now, and to start it again would wait for that, for ever.
    """
    units = set(units)
    _cancel_stops(units)
    stopped = units - set(active_units())
    others = sorted(unit for unit in stopped if not unit.startswith("seamless-upgrade"))
    if others:
        run(["systemctl", "start", "--", *others], check=False, timeout=RESUME_S)
        from upgrade.engines import health

        health.revive(others)
    Path(host.path(TARGET_FILE)).unlink(missing_ok=True)
    run(["systemctl", "daemon-reload"])
