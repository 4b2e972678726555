# SPDX-License-Identifier: MIT
"""The benchmark's programs in a guest, called from outside."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upgrade.errors import UpgradeError
from upgrade.rehearse.guest import PROGRAM
from upgrade.rehearse.machine import Machine
from upgrade.rehearse.outcome import refusal

LIBRARY = "/usr/local/lib/seamless-upgrade"  # where `scripts/install` puts the packages
ENVIRONMENT = {"PYTHONPATH": LIBRARY, "PYTHONDONTWRITEBYTECODE": "1"}
RUN = "/run/bench"

CONTROL_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Guest:
    """A machine with the benchmark's programs."""

    machine: Machine

    def control(self, command: str, *numbers: int) -> Any:
        """Return the answer to a command of ``upgrade.bench.guest.control``."""
        argv = python("control", command, *map(str, numbers))
        return json.loads(self.machine.run(argv, env=ENVIRONMENT, timeout=CONTROL_SECONDS).stdout)

    def sample(self) -> None:
        """Start the sampler; it ends with the kernel, or before the next cell."""
        # A child of the agent: units are stopped by an upgrade.
        self.machine.agent.start(python("sampler"), env=ENVIRONMENT)
        self.machine.wait_until(self._sampling, 120, "the sampler did not start")

    def _sampling(self) -> bool:
        return self.machine.run(["test", "-e", "/run/bench-sampler"], check=False).returncode == 0

    def leave(self, argv: Sequence[str]) -> None:
        """Start a program that is to end in another kernel; :meth:`refusal` tells if it did not."""
        script = f"mkdir -p {RUN}; {shlex.join(argv)} >{RUN}/out 2>{RUN}/err; echo $? >{RUN}/new"
        script += f"; mv {RUN}/new {RUN}/status"
        self.machine.shell(f"rm -rf {RUN}")
        self.machine.agent.start(["sh", "-c", script], env=ENVIRONMENT)

    def refusal(self) -> UpgradeError | None:
        """Return what the program said that was to enter another kernel, if it failed."""
        failed = f"[ -e {RUN}/status ] && [ $(cat {RUN}/status) != 0 ]"
        if self.machine.run(["sh", "-c", failed], check=False).returncode != 0:
            return None
        status, out, err = (self.machine.get(f"{RUN}/{name}").decode() for name in ("status", "out", "err"))
        return refusal(int(status), out, err)

    def report(self) -> dict[str, Any]:
        """Wait until the product has ended and return its report.

        :raises UpgradeError: where something was not preserved, or there is no report
        """
        waited = self.machine.run([PROGRAM, "status", "--wait"], timeout=CONTROL_SECONDS, check=False)
        done = self.machine.run([PROGRAM, "report", "--json"], timeout=120, check=False)
        try:
            report: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise UpgradeError(f"no report: {done.stdout}{done.stderr}", subject=PROGRAM) from None
        if waited.returncode != 0:
            raise UpgradeError(report.get("reason") or waited.stdout + waited.stderr, subject=PROGRAM)
        return report

    def knows(self, option: str) -> bool:
        """Tell whether the product has an option."""
        return option in self.machine.run([PROGRAM, "run", "--help"]).stdout


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs one of the programs."""
    return ["/usr/bin/python3", "-s", "-m", f"upgrade.bench.guest.{module}", *arguments]
