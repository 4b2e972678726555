# SPDX-License-Identifier: MIT
"""What the engines of OCI containers have in common: crun and runc, alone or under podman."""

from collections.abc import Mapping
from typing import Any

from upgrade import cgroup
from upgrade.engines.base import Container
from upgrade.errors import Refusal
from upgrade.host import Host

MANAGER = "io.container.manager"
"""The annotation by which podman marks what it runs (``libpod``)."""


def is_of_podman(annotations: Mapping[str, str]) -> bool:
    """Tell whether podman runs a container; then podman has to restore it."""
    return annotations.get(MANAGER) == "libpod"


def refuse_state(host: Host, container: Container, resume: str, run: str) -> None:
    """Refuse a container that is paused, or has tasks that CRIU would not dump.

    :param resume: the command that resumes it
    :param run: the command by which tasks come into it that its init did not start
    """
    if host.read_or(cgroup.path(container.cgroup, "cgroup.freeze"), "0") == "1":
        raise Refusal("is paused", subject=container.name, hint=f"{resume} {container.name}")
    found = strangers(host, container)
    if found:
        raise Refusal(
            f"has tasks that its init did not start ({run}): {found}",
            subject=container.name,
            hint="end them first: CRIU dumps the tree of the init",
        )


def strangers(host: Host, container: Container) -> list[int]:
    """Return the processes of a container's cgroup that do not descend from its init."""
    pids = cgroup.pids(host, container.cgroup)
    parents = {pid: cgroup.parent(host, pid) for pid in pids}
    return [pid for pid in pids if pid != container.root_pid and parents[pid] not in parents]


def has_tasks(host: Host, container: Container) -> bool:
    """Tell whether a container runs."""
    return host.exists(f"/proc/{container.root_pid}/exe") and bool(cgroup.pids(host, container.cgroup))


def external_mount(options: Any, key: str, value: str | None = None) -> None:
    """Have CRIU leave a mount to whoever restores, under a name (the same, if none is given)."""
    entry = options.ext_mnt.add()
    entry.key = key
    entry.val = value if value is not None else key


def bind_mounts(spec: Mapping[str, Any]) -> list[str]:
    """Return where the bind mounts of a ``config.json`` are (OCI runtime specification, "Mounts")."""
    mounts = spec.get("mounts") or []
    return [m["destination"] for m in mounts if {"bind", "rbind"} & set(m.get("options") or [])]


def namespaces(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the namespaces of a container by type: the path of one that it joins, or nothing for its own."""
    return {n["type"]: n.get("path") or "" for n in (spec.get("linux") or {}).get("namespaces") or []}
