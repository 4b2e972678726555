# SPDX-License-Identifier: MIT
"""What a benchmark asks of its guest: ``python3 -m upgrade.bench.guest.control COMMAND [COUNT [MIB]]``.

Every command answers with one JSON object on standard output.
"""

import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from upgrade.bench.guest import ballast, pending, sampler, tree
from upgrade.bench.guest.ballast import WORK
from upgrade.clock import Clock, frequency
from upgrade.host import Host
from upgrade.kexec.initrd import FIRST_USERSPACE
from upgrade.restore import bootlog

UNITS = Path("/etc/systemd/system")
# What the kernel itself says just before it executes its first program (init/main.c).
RUN_INIT = "as init process"
CALIBRATE_SECONDS = 2.0
BACK_SECONDS = 900.0

_PYTHON = f"/usr/bin/env PYTHONPATH={tree.LIBRARY} PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 -s"
_UNIT = """[Unit]
Description=Benchmark: {kind}
ConditionPathExists={place}
{unit}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={python} -m upgrade.bench.guest.back {kind}
KillMode=process
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=3600

[Install]
WantedBy={target}
"""
# As early as the root disk can be written to, as the product's own unit.
_EARLY = """DefaultDependencies=no
After=systemd-remount-fs.service
RequiresMountsFor=/usr /opt
Before=sysinit.target shutdown.target
Conflicts=shutdown.target"""
# As any service that needs the network.
_ORDINARY = "After=network.target"


def install() -> dict[str, Any]:
    """Install the units of the baselines."""
    WORK.mkdir(parents=True, exist_ok=True)
    for kind, unit, target in (
        ("images", _EARLY, "sysinit.target"),
        ("cold", _ORDINARY, "multi-user.target"),
    ):
        name = f"bench-{kind}.service"
        text = _UNIT.format(kind=kind, place=pending.PLACES[kind], unit=unit, python=_PYTHON, target=target)
        (UNITS / name).write_text(text)
        wants = UNITS / f"{target}.wants"
        wants.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            (wants / name).symlink_to(UNITS / name)
    return {}


def prepare(count: int, mib: int) -> dict[str, Any]:
    """Start the containers afresh and wait until they are ready."""
    tree.stop(signal.SIGKILL)
    sampler.RUNNING.unlink(missing_ok=True)
    for left in (*pending.PLACES.values(), pending.DONE, *WORK.glob("last-*")):
        left.unlink(missing_ok=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    tree.start(count, mib)
    tree.wait(count)
    return {}


def mark(count: int) -> dict[str, Any]:
    """Forget all gaps so far."""
    for number in range(count):
        ballast.ask(number, "mark")
    return {"tsc": Clock().tsc()}


def collect(count: int) -> dict[str, Any]:
    """Wait until all containers answer, and return what is known of the time between (TSC values)."""
    host, clock = Host(), Clock()
    containers = [ballast.ask(number, "gap", BACK_SECONDS) for number in range(count)]
    state: dict[str, Any] = {}
    deadline = time.monotonic() + BACK_SECONDS
    while any(place.exists() for place in pending.PLACES.values()):  # the unit has not ended yet
        if time.monotonic() > deadline:
            raise OSError("the containers did not come back in time")
        time.sleep(0.1)
    with suppress(OSError):
        state = json.loads(pending.DONE.read_text())
    first = clock.tie()
    time.sleep(CALIBRATE_SECONDS)
    rate = frequency(first, clock.tie())
    found = bootlog.tsc_of((FIRST_USERSPACE, RUN_INIT), clock, rate, host)
    return {
        "containers": containers,
        "hertz": rate.hertz,
        "error": rate.relative_error,
        "kernel": found[bootlog.KERNEL_START],
        "userspace": found.get(FIRST_USERSPACE, found.get(RUN_INIT)),
        "state": state,
    }


def verify(count: int) -> dict[str, Any]:
    """Compare the memory of every container with what was written to it."""
    answers = [ballast.ask(number, "verify") for number in range(count)]
    return {"wrong": [n for n, a in enumerate(answers) if a["expected"] != a["found"]]}


def main(command: str, *numbers: int) -> None:
    """Do one thing and print what came of it."""
    commands = {"install": install, "prepare": prepare, "mark": mark, "collect": collect, "verify": verify}
    action: Any = commands[command]
    print(json.dumps(action(*numbers)))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
