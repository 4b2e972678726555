# SPDX-License-Identifier: MIT
"""Kernel settings of containers' own namespaces: CRIU dumps some, and runc sets them at the start only."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase

from upgrade.check.model import Check, Finding, passed, warned
from upgrade.check.situation import Situation
from upgrade.engines import Container
from upgrade.engines.runc import STATE_ROOT
from upgrade.host import Host

# criu/net.c, devconfs4, devconfs6, unix_conf_entries, ipv4_sysctl_entries; ipc_ns.c, ipc_sysctl_req(); uts_ns.c
CARRIED = (
    *("net.ipv4.conf.*", "net.ipv6.conf.*", "net.unix.max_dgram_qlen", "net.ipv4.ping_group_range"),
    *("kernel.sem", "kernel.msg*", "kernel.auto_msgmni", "kernel.shm*", "fs.mqueue.*"),
    *("kernel.hostname", "kernel.domainname"),
)


def sysctls(situation: Situation) -> Iterator[Finding]:
    """Look for settings that a container was started with and does not get back."""
    count, bad = 0, False
    for container in situation.containers:
        given = _given(situation.host, container)
        count += len(given)
        lost = [f"{name}={value}" for name, value in sorted(given.items()) if not _is_carried(name)]
        if lost:
            bad = True
            yield warned(
                container.name,
                f"was started with {', '.join(lost)}",
                source=f"{STATE_ROOT}/{container.name}/state.json",
                reason="CRIU does not dump these, and runc sets them when a container starts, not when it is restored: "
                "it goes on with the kernel's defaults",
                remedy="set them again afterwards (nsenter -t PID -n sysctl -w NAME=VALUE), or start it anew",
            )
    if not bad:
        yield passed("kernel settings", f"{count} of the containers' own, all brought back by CRIU")


def _given(host: Host, container: Container) -> dict[str, str]:
    """Return what a container of runc was started with, by names with dots."""
    if container.engine != "runc":
        return {}
    state = json.loads(host.read(f"{STATE_ROOT}/{container.name}/state.json"))
    found = state["config"].get("sysctl") or {}
    return {str(name).replace("/", "."): str(value) for name, value in found.items()}


def _is_carried(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in CARRIED)


CHECKS = (Check("containers.sysctls", "their kernel settings come back", sysctls),)
