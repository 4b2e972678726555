# SPDX-License-Identifier: MIT
"""crun containers: found in crun's state, dumped as crun would, restored by ``crun restore``.

Restoring through crun makes ``crun list``, ``exec`` and ``kill`` work afterwards. So the dump has to name external
mounts and namespaces just as crun's own checkpoint does (crun 1.21, src/libcrun/criu.c).
"""

import json
import os
from pathlib import Path
from typing import Any

from upgrade import paths
from upgrade.criu import log_errors
from upgrade.engines import bus
from upgrade.engines.base import GHOST_LIMIT_BYTES, Container, Images, Unlock
from upgrade.engines.oci import Runtime, bind_mounts, external_mount, is_of_podman, namespaces
from upgrade.errors import Refusal, UpgradeError
from upgrade.process import run_detaching

STATE_ROOT = "/run/crun"
COMMAND_S = 120
# crun's names for namespaces that exist already: the kind as CRIU calls it, the key that crun's restore looks for
EXTERNAL_NAMESPACES = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}


class CrunEngine(Runtime):
    """Preserves containers that crun started by itself."""

    name = "crun"
    state_root = STATE_ROOT
    state_file = "status"
    lazy = False

    def refuse(self, container: Container) -> None:
        """Refuse one with a terminal."""
        if container.data["terminal"]:
            raise Refusal(
                "has a terminal, whose other end ends with this kernel",
                subject=container.name,
                hint='start it with "terminal": false in its config.json',
            )

    def read(self, name: str) -> Container:
        """Return a container as crun has written it down, whether it runs or not."""
        directory = f"{STATE_ROOT}/{name}"
        try:
            status = json.loads(self.host.read(f"{directory}/status"))
            spec = json.loads(self.host.read(f"{directory}/config.json"))
            linux = spec.get("linux") or {}
            joined = namespaces(spec)
            return Container(
                name=name,
                engine=self.name,
                cgroup="/" + str(status["cgroup-path"]).strip("/"),
                root_pid=int(status["pid"]),
                host_pids="pid" not in joined,
                host_network="network" not in joined,
                data={
                    "bundle": status["bundle"],
                    "root": os.path.join(status["bundle"], status["rootfs"]),
                    "mounts": bind_mounts(spec),
                    "masked": linux.get("maskedPaths") or [],
                    "namespaces": joined,
                    "external_descriptors": json.loads(status.get("external_descriptors") or "[]"),
                    "systemd": bool(status.get("systemd-cgroup")),
                    "terminal": bool((spec.get("process") or {}).get("terminal")),
                    "podman": is_of_podman(spec.get("annotations") or {}),
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as e:
            raise Refusal(f"its state cannot be read: {e!r}", subject=name, hint=f"crun state {name}") from e

    def dump_options(self, container: Container, options: Any) -> None:
        """Ask for what crun's own checkpoint asks for, and for what its restore does not have to be told of."""
        data = container.data
        options.root = data["root"]
        options.orphan_pts_master = True
        options.ext_unix_sk = True
        options.file_locks = True
        options.link_remap = True
        options.ghost_limit = GHOST_LIMIT_BYTES
        for destination in data["mounts"]:
            external_mount(options, destination)
        for masked in data["masked"]:
            if self.host.path(masked).is_file():
                external_mount(options, masked)
        for kind, (short, key) in EXTERNAL_NAMESPACES.items():
            if path := data["namespaces"].get(kind):
                options.external.append(f"{short}[{self.host.path(path).stat().st_ino}]:{key}")

    def restore(self, container: Container, images: Images, unlock: Unlock) -> int:
        """Let crun restore; it returns when the tasks run."""
        command = ["restore", "--detach", "--tcp-established", "--ext-unix-sk", "--file-locks"]
        command += ["--image-path", os.fspath(images.directory), "--work-path", os.fspath(images.work)]
        self._call(container, command, images.work, images.timeout_s or COMMAND_S)
        unlock()
        return self.read(container.name).root_pid

    def cold_start(self, container: Container) -> bool:
        """Start the bundle afresh."""
        self._call(container, ["run", "--detach"], paths.RUNTIME, COMMAND_S)
        return True

    def _call(self, container: Container, command: list[str], work: Path, timeout_s: float) -> None:
        """Run crun, whose detached container inherits its standard streams; errors come from its log."""
        if self.is_late(container):
            bus.wait(self.host)
        log = paths.RUNTIME / f"crun-{container.name}.log"
        words = [
            "crun",
            "--log",
            os.fspath(log),
            *(["--systemd-cgroup"] if container.data["systemd"] else []),
        ]
        words += [*command, "--bundle", container.data["bundle"], container.name]
        status = run_detaching(words, timeout=timeout_s)
        if status != 0:
            lines = log.read_text(errors="replace").splitlines()[-2:] if log.exists() else []
            criu = log_errors(work / "restore.log")
            raise UpgradeError("; ".join(criu or lines) or f"exit status {status}", subject="crun")

    def helpers(self, container: Container) -> tuple[str, ...]:
        """Return none: crun's cgroups are named by their paths, and it works in our unit."""
        return ()

    def is_late(self, container: Container) -> bool:
        """Tell whether systemd has to make its cgroup."""
        return bool(container.data["systemd"])
