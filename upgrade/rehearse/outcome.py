# SPDX-License-Identifier: MIT
"""What came of a rehearsal, and how it is told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upgrade.errors import UpgradeError
from upgrade.process import run
from upgrade.rehearse.accelerator import QEMU
from upgrade.rehearse.guest import PROGRAM
from upgrade.rehearse.kernels import Kernel
from upgrade.rehearse.machine import Machine
from upgrade.rehearse.probe import Verdict
from upgrade.rehearse.workload import Workload

SCHEMA_VERSION = 1
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything a rehearsal found out.

    ``rounds`` are the upgrades that were begun: each with the product's own ``report``, and a ``verify`` of
    every workload where it got as far.
    """

    kernels: tuple[Kernel, Kernel]
    workloads: Sequence[Workload]
    rounds: Sequence[Result]
    probed: Mapping[str, Verdict]
    error: UpgradeError | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every upgrade brought everything back, and nobody outside noticed anything wrong."""
        return (
            self.error is None
            and all(map(round_passed, self.rounds))
            and all(map(passed, self.probed.values()))
        )

    def to_json(self, machine: Machine) -> Result:
        """Return the result as it is written out.

        With one workload ``verify`` and ``probe`` are its verdicts, with several they are keyed by name.
        """
        last = self.rounds[-1] if self.rounds else {}
        verified: dict[str, Verdict] = last.get("verify", {})
        names = [workload.name for workload in self.workloads]
        only = names[0] if len(names) == 1 else None
        return {
            "schema_version": SCHEMA_VERSION,
            "outcome": "passed" if self.passed else "failed",
            "error": self.error.to_json() if self.error else None,
            "kernel_from": self.kernels[0].release,
            "kernel_to": self.kernels[1].release,
            "report": last.get("report"),
            "verify": verified.get(only) if only else verified,
            "probe": self.probed.get(only) if only else dict(self.probed),
            "workloads": {
                each.name: {
                    "preserved": [*each.cgroups, *each.containers],
                    "verify": verified.get(each.name),
                    "probe": self.probed.get(each.name),
                }
                for each in self.workloads
            },
            "rounds": list(self.rounds),
            "versions": versions(machine),
            "accelerator": machine.accelerator,
            "console": str(machine.console),
            "seconds": round(self.seconds, 1),
        }


def refusal(status: int, out: str, err: str) -> UpgradeError:
    """Return the error that the product answered in the guest."""
    try:
        error = json.loads(out)["error"]
        where = f"{error['subject']}: " if error.get("subject") else ""
        message, hint = f"{where}{error['message']}", error.get("hint")
    except (ValueError, KeyError, TypeError):
        message, hint = f"{out}\n{err}".strip()[-2000:], None
    return UpgradeError(f"the upgrade ended with status {status}: {message}", subject="guest", hint=hint)


def passed(verdict: Verdict) -> bool:
    """Tell whether a program found everything in order."""
    return verdict["exit_status"] == 0


def round_passed(done: Result) -> bool:
    """Tell whether one upgrade brought everything back."""
    if "verify" not in done:
        return False
    return passed(done["status"]) and all(map(passed, done["verify"].values()))


def versions(machine: Machine) -> dict[str, str | None]:
    """Return the versions that matter where somebody reads a result later."""

    def first(text: str) -> str | None:
        return next(iter(text.strip().splitlines()), None)

    def inside(*command: str) -> str | None:
        try:
            return first(machine.run(command, check=False, timeout=30).stdout)
        except UpgradeError:
            return None

    return {
        "seamless_upgrade": inside(PROGRAM, "--version"),
        "criu": inside("criu", "--version"),
        "runc": inside("runc", "--version"),
        "guest": inside("cat", "/etc/debian_version"),
        "qemu": first(run([QEMU, "--version"]).stdout),
    }
