# SPDX-License-Identifier: MIT
"""One cell in a running machine: start the containers, replace the kernel, look what came of it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upgrade.bench import measure
from upgrade.bench.guestside import Guest, python
from upgrade.bench.matrix import Mode, Way
from upgrade.bench.model import Cell
from upgrade.errors import UpgradeError
from upgrade.rehearse import probe
from upgrade.rehearse.guest import PROGRAM
from upgrade.rehearse.kernels import Kernel
from upgrade.rehearse.machine import Machine
from upgrade.rehearse.probe import Probe
from upgrade.rehearse.qmp import Monitor
from upgrade.rehearse.rehearsal import settle
from upgrade.rehearse.workload import Workload
from upgrade.report.model import Phase

FIRST_PORT = 7200  # upgrade.bench.guest.ballast.PORT
UPGRADE_SECONDS = 1800.0
OUTSIDE = Path(__file__).with_name("outside")
OLD_OPTION = "--pages"


@dataclass(slots=True)
class Trial:
    """A machine of one row."""

    machine: Machine
    kernels: tuple[Kernel, Kernel]
    memory_mib: int
    containers: int
    work: Path
    number: int
    cells: int = 0

    @property
    def guest(self) -> Guest:
        """The machine's inside."""
        return Guest(self.machine)

    @staticmethod
    def ports(containers: int) -> tuple[int, ...]:
        """Return where the containers answer."""
        return tuple(range(FIRST_PORT, FIRST_PORT + containers))

    def measure(self, mode: Mode, number: int) -> Cell:
        """Measure one cell.

        :raises UpgradeError: where a container did not come back, or not with the memory that it had
        """
        began = time.monotonic()
        count = self.containers if mode.way is not Way.FLOOR else 0
        self._enter_first_kernel()
        self.guest.control("prepare", count, self.memory_mib)
        position = self.machine.log.size
        with self._outside(count) as client:
            self.guest.sample()
            marked = self.guest.control("mark", count)
            self._leave(mode, count)
            report = self.guest.report() if mode.way is Way.PRODUCT else None
            collected = self.guest.control("collect", count)
            seen = outside(client)
        wrong = self.guest.control("verify", count)["wrong"]
        if wrong:
            raise UpgradeError(f"the memory of container {wrong[0]} is not what it was", subject=mode.name)
        console = self.machine.log.text(position)
        found = measure.noted(marked, collected, console)
        cell = Cell(
            mode=mode.name,
            round=number,
            downtime_seconds=found.downtime_seconds,
            container_seconds=found.container_seconds,
            outside_seconds=seen,
            floor_seconds=found.floor_seconds if mode.way in (Way.KEXEC, Way.FLOOR) else None,
            phases=found.phases(mode.way),
            extra_bytes=measure.extra_bytes(console),
            machine=self.number,
            wall_seconds=round(time.monotonic() - began, 1),
        )
        if report is not None:
            return with_report(cell, report)
        copied = int(collected["state"].get("bytes_copied", 0))
        notes = (
            () if found.continuous else ("the counter did not run on: the client outside is all there is",)
        )
        return replace(cell, bytes_copied=copied, store_bytes=copied, notes=notes)

    def _enter_first_kernel(self) -> None:
        """Boot the first kernel where another runs: every cell goes the same way."""
        if self.machine.run(["uname", "-r"]).stdout.strip() != self.kernels[0].release:
            self.machine.shell("sync")
            self.machine.reset()
        settle(self.machine)

    def _leave(self, mode: Mode, count: int) -> None:
        """Replace the kernel and wait until the new one answers.

        :raises UpgradeError: where the old one stays
        """
        old = self.machine.boot_id()
        with self._restarts(mode):
            self.guest.leave(self._command(mode, count))
            self.machine.wait_until(
                lambda: self.machine.boot_id() != old or self.guest.refusal() is not None,
                UPGRADE_SECONDS,
                "no new kernel came up",
            )
        if self.machine.boot_id() == old:
            raise self.guest.refusal() or UpgradeError("the old kernel stays", subject=mode.name)
        expected = self.kernels[0 if mode.way is Way.REBOOT else 1].release
        release = self.machine.run(["uname", "-r"]).stdout.strip()
        if release != expected:
            raise UpgradeError(f"the machine came back with {release}", subject=expected)

    def _command(self, mode: Mode, count: int) -> list[str]:
        release = self.kernels[1].release
        if mode.way is not Way.PRODUCT:
            return python("leave", mode.way, str(count), str(self.memory_mib), release)
        command = [PROGRAM, "run", "--yes", "--json", "--kernel", f"/boot/vmlinuz-{release}"]
        command += ["--initrd", f"/boot/initrd.img-{release}"]
        command += [part for number in range(count) for part in ("--cgroup", f"/workload/bench-{number}")]
        if self.guest.knows(OLD_OPTION):
            return [*command, *mode.options]
        if mode.in_place:
            raise UpgradeError(f"this version has no {OLD_OPTION}: it can only copy", subject=mode.name)
        return command

    @contextmanager
    def _restarts(self, mode: Mode) -> Iterator[None]:
        """Let the guest reset the machine, which ends QEMU otherwise."""
        if mode.way is not Way.REBOOT:
            yield
            return
        with Monitor.connect(self.machine.monitor) as monitor:
            monitor.command("set-action", {"reboot": "reset"})
        self.machine.started_at = self.machine.log.size
        try:
            yield
        finally:
            with Monitor.connect(self.machine.monitor) as monitor:
                monitor.command("set-action", {"reboot": "shutdown"})

    @contextmanager
    def _outside(self, count: int) -> Iterator[Probe | None]:
        """Run the client outside."""
        self.cells += 1
        directory = self.work / f"cell-{self.cells}"
        workload = Workload(OUTSIDE, "bench", ports=self.ports(count))
        with probe.running([workload] if count else [], self.machine.network, directory) as found:
            yield found[0] if found else None


def outside(client: Probe | None) -> float | None:
    """End the client outside and return the longest time without an answer, in seconds.

    :raises UpgradeError: where it did not get through at all
    """
    if client is None:
        return None
    client.check()
    seen = client.stop()
    try:
        found = json.loads(str(seen["output"]).strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise UpgradeError(f"says nothing: {seen['output']}", subject="client outside") from None
    if not found["replies"]:
        raise UpgradeError("got no answer", subject="client outside")
    return float(found["largest_gap_seconds"])


def with_report(cell: Cell, report: dict[str, Any]) -> Cell:
    """Return the cell with what the product itself measured."""
    copied = int(report["bytes_copied"])
    return replace(
        cell,
        phases=tuple(Phase(**phase) for phase in report["phases"]),
        bytes_copied=copied,
        store_bytes=copied,
        notes=tuple(report["warnings"]),
    )
