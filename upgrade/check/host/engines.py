# SPDX-License-Identifier: MIT
"""Containers that are not to be preserved: they end with the kernel, so somebody may have forgotten them.

They are found by the names that engines give to cgroups.
"""

import json
import re
from collections.abc import Iterator

from upgrade import cgroup
from upgrade.check.model import Finding, passed, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.engines import Container, Engine, engines
from upgrade.errors import UpgradeError
from upgrade.host import Host

ID = r"(?P<id>[0-9a-f]{64})"
# The part of a cgroup's path that names a container, by engine
PATTERNS = {
    "docker": re.compile(rf"/(?:docker-{ID}\.scope|docker/(?P<id2>[0-9a-f]{{64}}))$"),
    "podman": re.compile(rf"/libpod-(?:payload-)?{ID}(?:\.scope)?$"),
    "Kubernetes": re.compile(rf"/(?:cri-containerd-|crio-|kubepods[^/]*/.*/){ID}(?:\.scope)?$"),
    "containerd": re.compile(rf"/(?:nerdctl-{ID}\.scope|default/(?P<id2>[0-9a-f]{{64}}))$"),
    "LXC": re.compile(r"/lxc(?:\.payload[./]|/)(?P<id>[^/]+)$"),
    "systemd-nspawn": re.compile(r"/systemd-nspawn@(?P<id>[^/]+)\.service$"),
    "virtual machine": re.compile(r"/machine-qemu(?P<id>[^/]+)\.scope$"),
}
START = {
    "docker": "--cold docker stops them properly and starts them again",
    "podman": "podman ps; give them units of systemd or start them afterwards",
    "Kubernetes": "kubectl drain this node, or let the kubelet start them again",
}
SHOWN = 8
SHORT = 12


def forgotten(situation: Situation) -> Iterator[Finding]:
    """Look for containers and virtual machines that run and are not preserved."""
    host = situation.host
    kept = _kept(situation)
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for path in cgroup.tree(host, "/"):
        kind, name = _container(host, path)
        if kind and not _inside(path, kept) and cgroup.pids(host, path):
            found.setdefault(kind, []).append(name)
            seen.add(path)
    for engine in engines(host):
        # podman keeps its containers' state where runc does
        others = [c.name for c in _available(engine) if not _inside(c.cgroup, kept) and c.cgroup not in seen]
        found.setdefault(engine.name, []).extend(others)
    for kind, names in sorted(found.items()):
        if names and kind in situation.request.cold:
            yield passed(
                kind, f"{len(names)} are stopped before the jump and started after it", cgroup.MOUNT_POINT
            )
        elif names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield warned(
                kind,
                f"{len(names)} not preserved: {', '.join(sorted(names)[:SHOWN])}{more}",
                source=cgroup.MOUNT_POINT,
                reason="they are stopped before the jump, and start again only as after any reboot",
                remedy=START.get(kind, "name them, too, or stop them yourself"),
            )
    if not any(found.values()):
        yield passed("other containers", "none runs", cgroup.MOUNT_POINT)


def _available(engine: Engine) -> list[Container]:
    """Return what an engine runs; nothing if it cannot say so, which ``containers.found`` reports."""
    try:
        return engine.available()
    except UpgradeError:
        return []


def _kept(situation: Situation) -> list[Container]:
    try:
        return list(situation.containers)
    except Unknown:
        return []


def _inside(path: str, kept: list[Container]) -> bool:
    """Tell whether a cgroup is one of those to be preserved, in one, or holds one (as a pod does)."""
    return any(
        f"{path}/".startswith(f"{c.cgroup.rstrip('/')}/") or c.cgroup.startswith(f"{path}/") for c in kept
    )


def _container(host: Host, path: str) -> tuple[str, str]:
    """Return engine and name of the container that a cgroup is of; nothing if it is of none."""
    for kind, pattern in PATTERNS.items():
        found = pattern.search(path)
        if found:
            groups = found.groupdict()
            name = str(groups["id"] or groups.get("id2")).replace("\\x2d", "-").strip("-")
            return kind, _docker_name(host, name) if kind == "docker" else _short(name)
    return "", ""


def _short(name: str) -> str:
    """Return a name as engines print it: the beginning of an id."""
    return name[:SHORT] if re.fullmatch("[0-9a-f]{64}", name) else name


def _docker_name(host: Host, identity: str) -> str:
    """Return the name that users know, which only root may read."""
    try:
        data = json.loads(host.read_or(f"/var/lib/docker/containers/{identity}/config.v2.json", "{}"))
        return str(data["Name"]).lstrip("/")
    except (ValueError, KeyError, TypeError):
        return _short(identity)
