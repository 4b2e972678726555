# SPDX-License-Identifier: MIT
"""Task trees in a cgroup: no engine at all, just processes in the host's namespaces."""

import os
from collections.abc import Sequence
from typing import Any

from upgrade import cgroup
from upgrade.engines import tree
from upgrade.engines.base import Container, Images, Unlock
from upgrade.errors import Refusal
from upgrade.host import Host
from upgrade.kexec import quiesce
from upgrade.process import run_detaching

NAMESPACES = ("mnt", "net", "ipc", "uts", "pid", "user")
COLD_START_S = 60


class CgroupEngine:
    """Preserves the one task tree in a cgroup."""

    name = "cgroup"
    holds = True
    lazy = True

    def __init__(self, host: Host) -> None:
        self.host = host

    def available(self) -> list[Container]:
        """Return nothing: a cgroup has to be named, since most belong to systemd."""
        return []

    def knows(self, name: str) -> bool:
        """Never: a cgroup is named as such."""
        return False

    def find(self, name: str) -> Container:
        """Return the task tree of the cgroup ``name`` (``/workload/redis``)."""
        path = "/" + name.removeprefix(cgroup.MOUNT_POINT).strip("/")
        if path == "/" or not self.host.path(cgroup.path(path)).is_dir():
            raise Refusal(
                "there is no such cgroup", subject=name, hint=f"see the directories of {cgroup.MOUNT_POINT}"
            )
        pids = cgroup.pids(self.host, path)
        if not pids:
            raise Refusal("no task is in it", subject=path, hint="start the workload first, or leave it out")
        root = self._root(path, pids)
        self._refuse_foreign_namespaces(path, root)
        unit = quiesce.unit_of(path)
        if unit is not None and unit.endswith(".service"):
            raise Refusal(
                f"belongs to systemd's {unit}, which the new kernel's systemd would start a second time",
                subject=path,
                hint=f"name it as a service: --unit {unit}",
            )
        from upgrade.config import Config  # tomllib: not for the new kernel's path

        cold_start = Config.load(self.host).cold_start.get(path)
        data = {"cold_start": list(cold_start)} if cold_start else {}
        return Container(path, self.name, path, root, host_pids=True, host_network=True, data=data)

    def _root(self, path: str, pids: list[int]) -> int:
        parents = {pid: cgroup.parent(self.host, pid) for pid in pids}
        roots = [pid for pid in pids if parents[pid] not in parents]
        if len(roots) != 1:
            listed = ", ".join(f"{pid} ({self.host.read_or(f'/proc/{pid}/comm', '?')})" for pid in roots)
            raise Refusal(
                f"holds {len(roots)} task trees, CRIU dumps one: {listed}",
                subject=path,
                hint="give each tree a cgroup of its own",
            )
        session = cgroup.stat(self.host, roots[0])[3]
        if int(session) != roots[0]:
            raise Refusal(
                f"its first task {roots[0]} is no session leader (it belongs to session {session})",
                subject=path,
                hint="start it with setsid(1)",
            )
        return roots[0]

    def _refuse_foreign_namespaces(self, path: str, root: int) -> None:
        for kind in NAMESPACES:
            own = os.readlink(self.host.path(f"/proc/self/ns/{kind}"))
            try:
                theirs = os.readlink(self.host.path(f"/proc/{root}/ns/{kind}"))
            except (
                FileNotFoundError
            ):  # its first thread has ended: containers.tasks says so if others have not
                return
            if own != theirs:
                raise Refusal(
                    f"its tasks have a {kind} namespace of their own",
                    subject=path,
                    hint="name it with --container if it is a runc container",
                )

    def dump_options(self, container: Container, options: Any) -> None:
        """Dump with everything a plain service may have open."""
        tree.dump_options(self.host, container, options)

    def prepare_images(self, container: Container, images: Images) -> None:
        """Nothing: CRIU's images say it all."""

    def capture(self, container: Container, images: Images) -> None:
        """Nothing, either."""

    def expect(self, containers: Sequence[Container]) -> None:
        """Prepare nothing."""

    def restore(self, container: Container, images: Images, unlock: Unlock) -> int:
        """Restore through CRIU itself; the tree's root becomes a child of init."""
        return tree.restore(self.host, images, unlock)

    def cold_start(self, container: Container) -> bool:
        """Run the command that the configuration names for this cgroup, in that cgroup."""
        command: list[str] = container.data.get("cold_start", [])
        if not command:
            return False
        directory = self.host.path(cgroup.path(container.cgroup))
        directory.mkdir(parents=True, exist_ok=True)
        procs = os.fspath(directory / "cgroup.procs")
        enter = ["sh", "-c", 'echo $$ > "$1" && shift && exec setsid --fork "$@"', "sh", procs, *command]
        return run_detaching(enter, timeout=COLD_START_S) == 0

    def clean_up(self, container: Container) -> None:
        """End what a failed restore left in the cgroup."""
        cgroup.kill(self.host, container.cgroup)

    def runs(self, container: Container) -> bool:
        """Look for its tasks."""
        return bool(cgroup.pids(self.host, container.cgroup))

    def helpers(self, _container: Container) -> tuple[str, ...]:
        """Return none: CRIU is our own child."""
        return ()

    def is_late(self, _container: Container) -> bool:
        """Tell that it is not: CRIU needs nobody."""
        return False
