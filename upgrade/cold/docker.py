# SPDX-License-Identifier: MIT
"""docker's containers."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from upgrade.cold.engine import Running
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.process import run

# Not its socket: podman offers one of the same name.
PID_FILE = "/run/docker.pid"
UNIT = "docker.service"
COMMAND_S = 120
STOP_S = 900
SWARM = "com.docker.swarm.task.id"


class Docker:
    """Stops and starts what dockerd runs, but for the tasks of a swarm: its managers do that."""

    name = "docker"
    why = (
        "docker restores only from a checkpoint that it made itself, which takes no established TCP connection along "
        "and is copied into containerd's store and out of it"
    )

    def __init__(self, host: Host) -> None:
        self.host = host

    def running(self) -> list[Running]:
        """Return what runs; nothing without dockerd."""
        if not self.host.exists(PID_FILE):
            return []
        ids = run(["docker", "ps", "--quiet", "--no-trunc"], timeout=COMMAND_S).stdout.split()
        found = [_running(each) for each in _inspect(ids) if SWARM not in (each["Config"]["Labels"] or {})]
        return sorted(found, key=lambda each: each.started_ns)

    def stop(self, ids: Sequence[str]) -> None:
        """Stop them side by side."""
        if ids:
            run(["docker", "stop", *ids], timeout=STOP_S)

    def start(self, id: str) -> int:
        """Start it, unless its restart policy has done that."""
        if not self.host.exists(PID_FILE):  # it ran, but no boot would start it
            run(["systemctl", "start", UNIT], timeout=COMMAND_S)
        run(["docker", "start", id], timeout=COMMAND_S)
        (inspected,) = _inspect([id])
        if not inspected["State"]["Running"]:
            status = inspected["State"]["ExitCode"]
            raise UpgradeError(f"ended at once with status {status}", hint=f"docker logs {id[:12]}")
        return _running(inspected).started_ns


def _inspect(ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return what docker says of containers; one that has ended meanwhile and is gone is left out."""
    words = list(ids)
    if not words:
        return []
    done = run(["docker", "container", "inspect", *words], timeout=COMMAND_S, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError as e:
        raise UpgradeError(done.stderr.strip() or "no answer", subject="docker") from e
    return found


def _running(inspected: dict[str, Any]) -> Running:
    return Running(
        id=inspected["Id"],
        name=inspected["Name"].lstrip("/"),
        started_ns=_ns(inspected["State"]["StartedAt"]),
        removed=bool(inspected["HostConfig"]["AutoRemove"]),
    )


def _ns(text: str) -> int:
    """Return a time of Go's (RFC 3339) as nanoseconds since the epoch, exact to the microsecond."""
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000) * 1000
