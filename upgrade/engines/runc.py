# SPDX-License-Identifier: MIT
"""runc containers: found in runc's state, dumped as runc would, restored by ``runc restore``.

Restoring through runc makes ``runc list``, ``exec`` and ``kill`` work afterwards. So the dump has to name external
mounts and namespaces just as runc's own checkpoint does (runc v1.1.15, libcontainer/container_linux.go,
``Checkpoint`` and ``Restore``).
"""

import json
import os
from pathlib import Path
from typing import Any

from upgrade import cgroup, paths
from upgrade.criu import log_errors
from upgrade.engines.base import Container, Images, Unlock
from upgrade.engines.oci import Runtime, external_mount, is_of_podman
from upgrade.errors import Refusal, UpgradeError
from upgrade.process import run_detaching

STATE_ROOT = "/run/runc"
RESTORE_LOG = "runc.log"
COLD_START_S = 120
# libcontainer calls namespaces by the flags of clone(2)
EXTERNAL_NAMESPACES = {"NEWNET": ("net", "extRootNetNS"), "NEWPID": ("pid", "extRootPidNS")}


class RuncEngine(Runtime):
    """Preserves containers that runc started."""

    name = "runc"
    state_root = STATE_ROOT
    state_file = "state.json"
    lazy = True

    def _readable(self, name: str) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self.host.read(f"{STATE_ROOT}/{name}/state.json"))
            missing = {"config", "cgroup_paths", "init_process_pid"} - state.keys()
        except (ValueError, AttributeError) as e:
            raise Refusal(f"its state cannot be read: {e}", subject=name, hint=f"runc state {name}") from e
        if missing:
            raise Refusal(f"its state lacks {missing}", subject=name, hint=f"runc state {name}")
        if "" not in state["cgroup_paths"]:
            raise Refusal(
                "is in no cgroup of version 2",
                subject=name,
                hint="boot with systemd.unified_cgroup_hierarchy=1",
            )
        return state

    def read(self, name: str) -> Container:
        """Return a container as runc has written it down, whether it runs or not."""
        state = self._readable(name)
        config = state["config"]
        labels = dict(label.partition("=")[::2] for label in config.get("labels") or [])
        namespaces = {n["type"]: n.get("path", "") for n in config.get("namespaces") or []}
        directory: str = state["cgroup_paths"][""]
        return Container(
            name=name,
            engine=self.name,
            cgroup="/" + directory.removeprefix(cgroup.MOUNT_POINT).strip("/"),
            root_pid=int(state["init_process_pid"]),
            host_pids="NEWPID" not in namespaces,
            host_network="NEWNET" not in namespaces,
            data={
                "bundle": labels.get("bundle", ""),
                "rootfs": config["rootfs"],
                "mounts": [m for m in config.get("mounts") or [] if m.get("device") == "bind"],
                "mask_paths": config.get("mask_paths") or [],
                "devices": [d["path"] for d in config.get("devices") or []],
                "namespaces": namespaces,
                "external_descriptors": state.get("external_descriptors") or [],
                "podman": is_of_podman(labels),
                "own_cgroups_path": str((config.get("cgroups") or {}).get("path", "")),
            },
        )

    def dump_options(self, container: Container, options: Any) -> None:
        """Ask for what runc's own checkpoint asks for."""
        data = container.data
        options.root = data["rootfs"]
        options.orphan_pts_master = True
        options.ext_unix_sk = True
        options.file_locks = True
        for mount in data["mounts"]:
            external_mount(options, _inside(mount["destination"], data["rootfs"]))
        for masked in data["mask_paths"]:
            inside = self.host.path(f"/proc/{container.root_pid}/root/{masked.lstrip('/')}")
            if inside.exists() and not inside.is_dir():
                external_mount(options, masked, "/dev/null")
        for device in data["devices"]:
            external_mount(options, device)
        for kind, (short, key) in EXTERNAL_NAMESPACES.items():
            path = data["namespaces"].get(kind)
            if path:
                options.external.append(f"{short}[{os.stat(path).st_ino}]:{key}")

    def restore(self, container: Container, images: Images, unlock: Unlock) -> int:
        """Let runc restore; it returns when the tasks run."""
        command = ["runc", "restore", "--detach", "--tcp-established", "--ext-unix-sk", "--file-locks"]
        command += ["--manage-cgroups-mode", "soft", "--image-path", os.fspath(images.directory)]
        command += [
            "--work-path",
            os.fspath(images.work),
            "--bundle",
            container.data["bundle"],
            *(["--lazy-pages"] if images.lazy else []),  # of restore: handed on to CRIU, nothing else
            container.name,
        ]
        self._call(container, command, images.work / RESTORE_LOG, images.timeout_s or COLD_START_S)
        unlock()
        return self.read(container.name).root_pid

    def cold_start(self, container: Container) -> bool:
        """Start the bundle afresh."""
        command = ["runc", "run", "--detach", "--bundle", container.data["bundle"], container.name]
        self._call(container, command, paths.RUNTIME / f"{container.name}.log", COLD_START_S)
        return True

    def _call(self, container: Container, command: list[str], log: Path, timeout_s: float) -> None:
        """Run runc, whose detached container inherits its standard streams; errors come from its log."""
        words = [command[0], "--log", os.fspath(log), *command[1:]]
        status = run_detaching([*self._beside(container), *words], timeout=timeout_s)
        if status != 0:
            lines = log.read_text(errors="replace").splitlines()[-2:] if log.exists() else []
            criu = log_errors(log.parent / "restore.log")
            raise UpgradeError("; ".join(criu or lines) or f"exit status {status}", subject="runc")

    def helpers(self, container: Container) -> tuple[str, ...]:
        """Return where runc is put so that a cgroup of its own choice is outside of our unit."""
        return (self._place(container),) if self._is_beside(container) else ()

    def is_late(self, _container: Container) -> bool:
        """Tell that it is not: runc makes cgroups itself."""
        return False

    def _is_beside(self, container: Container) -> bool:
        return not container.data["own_cgroups_path"].startswith("/")

    def _place(self, container: Container) -> str:
        return f"{os.path.dirname(container.cgroup).rstrip('/')}/seamless-upgrade"

    def _beside(self, container: Container) -> list[str]:
        """Return a prefix that runs runc beside the container's cgroup.

        A bundle without an absolute ``cgroupsPath`` gets its cgroup beside runc's own (libcontainer
        cgroups/fs2/defaultpath.go); in a unit of systemd that would be inside the unit, and end with it.
        """
        if not self._is_beside(container):
            return []
        beside = self._place(container)
        self.host.path(cgroup.path(beside)).mkdir(parents=True, exist_ok=True)
        return ["sh", "-c", 'echo $$ > "$1" && shift && exec "$@"', "sh", cgroup.path(beside, "cgroup.procs")]


def _inside(destination: str, rootfs: str) -> str:
    return destination.removeprefix(rootfs)
