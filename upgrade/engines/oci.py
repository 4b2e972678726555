# SPDX-License-Identifier: MIT
"""What the engines of OCI containers have in common: crun and runc, alone or under podman."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from upgrade import cgroup
from upgrade.engines.base import Container, Images
from upgrade.errors import Refusal
from upgrade.host import Host
from upgrade.process import run

MANAGER = "io.container.manager"
"""The annotation by which podman marks what it runs (``libpod``)."""


class Runtime:
    """An OCI runtime that writes down, in a directory each, which containers it has started."""

    name: str
    """Of the engine, and of the program."""
    state_root: str
    state_file: str
    holds = False

    def __init__(self, host: Host) -> None:
        self.host = host

    def read(self, name: str) -> Container:
        """Return a container as the runtime has written it down, whether it runs or not."""
        raise NotImplementedError

    def available(self) -> list[Container]:
        """Return the running containers that are nobody else's."""
        own = [c for c in map(self.read, self.names()) if not c.data["podman"]]
        return [c for c in own if has_tasks(self.host, c)]

    def names(self) -> list[str]:
        """Return all containers that the runtime knows, whoever has started them."""
        return [n for n in self.host.list(self.state_root) if self._knows(n)]

    def knows(self, name: str) -> bool:
        """Tell whether the runtime runs a container by itself."""
        return name in self.names() and not self.read(name).data["podman"]

    def find(self, name: str) -> Container:
        """Return the running container ``name``; :class:`Refusal` says why it cannot be preserved."""
        if not self._knows(name):
            known = ", ".join(c.name for c in self.available()) or "none"
            raise Refusal(
                f"{self.name} knows no such container", subject=name, hint=f"running containers: {known}"
            )
        container = self.read(name)
        if container.data["podman"]:
            raise Refusal("belongs to podman", subject=name, hint="give it the name that podman ps shows")
        if not has_tasks(self.host, container):
            raise Refusal("does not run", subject=name, hint=f"{self.name} start {name}, or leave it out")
        for kind, path in container.data["namespaces"].items():
            if path:
                raise Refusal(
                    f"joins the namespace {path} ({kind}), which ends with this kernel",
                    subject=name,
                    hint="give it a namespace of its own",
                )
        self.refuse(container)
        refuse_state(self.host, container, f"{self.name} resume", f"{self.name} exec")
        return container

    def refuse(self, container: Container) -> None:
        """Refuse what only this runtime cannot bring back."""

    def prepare_images(self, container: Container, images: Images) -> None:
        """Write the list of inherited descriptors, which the runtime's restore reads."""
        text = json.dumps(container.data["external_descriptors"])
        (images.directory / "descriptors.json").write_text(text)

    def capture(self, container: Container, images: Images) -> None:
        """Nothing: CRIU's images say it all."""

    def expect(self, containers: Sequence[Container]) -> None:
        """Prepare nothing."""

    def clean_up(self, container: Container) -> None:
        """Make the runtime forget what a failed restore left."""
        run([self.name, "delete", "--force", container.name], check=False)
        cgroup.kill(self.host, container.cgroup)  # one that was killed early the runtime does not know

    def runs(self, container: Container) -> bool:
        """Ask the runtime's state."""
        try:
            return has_tasks(self.host, self.read(container.name))
        except (OSError, Refusal):
            return False

    def _knows(self, name: str) -> bool:
        return self.host.exists(f"{self.state_root}/{name}/{self.state_file}")


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
