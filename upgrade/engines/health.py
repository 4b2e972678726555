# SPDX-License-Identifier: MIT
"""The timers of podman's health checks: transient units of systemd, which end with it and with an ``isolate``.

``podman container restore`` starts none. A timer that is called like the container is one that podman ends together
with the container (libpod/healthcheck_linux.go, ``hcUnitName``).
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from upgrade.process import run, run_detaching

TIMER = re.compile(r"(?P<unit>(?P<id>[0-9a-f]{64})(?P<startup>-startup)?(?:-[0-9a-f]+)?)\.timer")
COMMAND_S = 60
_START = (
    'systemd-run --quiet --unit="$1" --on-unit-inactive="$2" --timer-property=AccuracySec=1s '
    '--property=LogLevelMax=notice podman healthcheck run "$3" && systemctl restart --no-block "$1.service"'
)


def of(inspected: Mapping[str, Any]) -> list[Any]:
    """Return the unit of a container's health checks and their interval in nanoseconds; nothing if it has none.

    After a boot podman begins with the checks of the start, where there are any.
    """
    identity, configuration = inspected["Id"], inspected["Config"]
    for key, unit in (("StartupHealthCheck", f"{identity}-startup"), ("Healthcheck", identity)):
        interval_ns = int((configuration.get(key) or {}).get("Interval") or 0)
        if interval_ns:
            return [unit, interval_ns]
    return []


def start(identity: str, unit: str, interval_ns: int) -> None:
    """Have a container checked from now on; does not wait for anything."""
    words = [unit, f"{interval_ns // 1000}us", identity]
    run_detaching(["sh", "-c", f"({_START}) &", "sh", *words], timeout=COMMAND_S)


def revive(units: Iterable[str]) -> None:
    """Start timers again that were stopped, and have ceased to exist by that."""
    for found in filter(None, map(TIMER.fullmatch, units)):
        key = "StartupHealthCheck" if found["startup"] else "Healthcheck"
        done = run(["podman", "container", "inspect", found["id"]], check=False, timeout=COMMAND_S)
        for inspected in json.loads(done.stdout) if done.returncode == 0 else ():
            interval_ns = int((inspected["Config"].get(key) or {}).get("Interval") or 0)
            if interval_ns:
                start(found["id"], found["unit"], interval_ns)
