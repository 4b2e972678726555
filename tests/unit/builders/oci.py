# SPDX-License-Identifier: MIT
"""The state of OCI containers as their runtimes write it, shortened."""

import json
from typing import Any

from builders.host import Machine

OWN = ({"type": "pid"}, {"type": "mount"}, {"type": "network"})


def put_crun(
    machine: Machine,
    name: str,
    pid: int,
    *,
    namespaces: Any = OWN,
    annotations: dict[str, str] | None = None,
    terminal: bool = False,
    systemd: bool = False,
) -> None:
    """Let a container with two processes run that crun 1.21 has started."""
    cgroup = f"/crun/{name}"
    status = {
        "pid": pid,
        "process-start-time": 1,
        "cgroup-path": cgroup,
        "rootfs": "rootfs",
        "systemd-cgroup": systemd,
        "bundle": f"/srv/{name}",
        "external_descriptors": '["/dev/null","pipe:[1]","pipe:[2]"]',
    }
    spec = {
        "process": {"terminal": terminal},
        "mounts": [
            {"destination": "/proc", "type": "proc", "options": ["nosuid"]},
            {"destination": "/data", "type": "bind", "options": ["rbind", "rw"]},
            {"destination": "/etc/hosts", "type": "bind", "options": ["bind"]},
            {"destination": "/scratch", "type": "tmpfs"},
        ],
        "annotations": annotations or {},
        "linux": {"namespaces": list(namespaces), "maskedPaths": ["/proc/kcore", "/proc/acpi", "/proc/none"]},
    }
    machine.file(f"/run/crun/{name}/status", json.dumps(status))
    machine.file(f"/run/crun/{name}/config.json", json.dumps(spec))
    machine.cgroup(cgroup, [pid, pid + 1])
    if not (machine.root / f"proc/{pid}").exists():
        machine.process(pid, parent=1)
        machine.process(pid + 1, parent=pid, session=pid)
