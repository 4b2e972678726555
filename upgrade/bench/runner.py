# SPDX-License-Identifier: MIT
"""Measuring: one machine for each row, all its modes interleaved, the result saved after every cell."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from upgrade.bench.matrix import MODES, Matrix, Mode
from upgrade.bench.model import Cell, Result, Row
from upgrade.bench.trial import Trial
from upgrade.errors import UpgradeError, UsageError
from upgrade.rehearse import accelerator, image, kernels, seed
from upgrade.rehearse.cache import Cache
from upgrade.rehearse.image import Image
from upgrade.rehearse.kernels import Kernel
from upgrade.rehearse.machine import Machine, MachineSpec
from upgrade.rehearse.outcome import versions
from upgrade.rehearse.rehearsal import install, settle

Say = Callable[[str], None]
KVM = "kvm"


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and how. ``clock`` is ``auto``, ``instructions`` or ``host``.

    ``resume`` keeps the good cells that ``output`` holds.
    """

    kernel_from: str
    kernel_to: str
    matrix: Matrix
    output: Path
    clock: str = "auto"
    resume: bool = False


@dataclass(slots=True)
class Runner:
    """A benchmark under way."""

    options: Options
    kernels: tuple[Kernel, Kernel]
    disk: Image
    result: Result
    say: Say
    cache: Cache
    machines: int = 0

    def run(self) -> None:
        """Measure every row."""
        for memory_mib, count in self.options.matrix.rows():
            row = self.result.row(memory_mib, count)
            done = {(cell.round, cell.mode) for cell in row.cells}
            self._row(
                row, [(n, mode) for n, mode in self.options.matrix.cells() if (n, mode.name) not in done]
            )
        self.result.finished_at = now()
        self.save()

    def save(self) -> None:
        """Write what there is so far."""
        self.result.save(self.options.output)

    def _row(self, row: Row, left: list[tuple[int, Mode]]) -> None:
        """Measure a row; a machine in which something went wrong is not used any more."""
        while left:
            before = len(left)
            try:
                with self._machine(row) as trial:
                    while left:
                        number, mode = left.pop(0)
                        if not self._cell(row, trial, number, mode):
                            break
            except UpgradeError as e:
                # The machine did not come up: the next one will not, either, unless it is chance.
                if len(left) == before:
                    number, mode = left.pop(0)
                    self._note(row, Cell(mode.name, number, error=str(e), machine=self.machines))

    def _cell(self, row: Row, trial: Trial, number: int, mode: Mode) -> bool:
        """Measure one cell; tell whether its machine can be used for the next one."""
        self.say(f"{row.containers} x {row.memory_mib} MiB, round {number}: {mode.title}")
        began = time.monotonic()
        try:
            cell = trial.measure(mode, number)
        except UpgradeError as e:
            error = f"{e}; see {trial.machine.console}"
            cell = Cell(mode.name, number, error=error, wall_seconds=round(time.monotonic() - began, 1))
        self._note(row, cell)
        return cell.good

    def _note(self, row: Row, cell: Cell) -> None:
        row.cells.append(cell)
        self.save()
        found = cell.downtime_seconds if cell.downtime_seconds is not None else cell.floor_seconds
        seconds = "no figure" if found is None else f"{found:.3f} s"
        self.say(f"  {cell.error or seconds} ({cell.wall_seconds:.0f} s)")

    @contextmanager
    def _machine(self, row: Row) -> Iterator[Trial]:
        """Boot a machine for a row and prepare it."""
        sizes = self.options.matrix.machine(row.memory_mib, row.containers)
        self.machines += 1
        spec = MachineSpec(
            image=self.disk,
            kernel=self.kernels[0],
            memory_mib=sizes.ordinary_mib,
            store_mib=sizes.store_mib,
            frames_mib=sizes.frames_mib,
            ports=Trial.ports(row.containers),
            seed=seed.code(),
            repeatable=self.result.clock == "instructions",
        )
        self.say(f"booting a machine with {sizes.total_mib} MiB")
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            machine = stack.enter_context(Machine.boot(spec, self.cache))
            settle(machine)
            install(machine)
            if not self.result.versions:
                self.result.versions = versions(machine)
            trial = Trial(machine, self.kernels, row.memory_mib, row.containers, work, self.machines)
            trial.guest.control("install")
            yield trial


def bench(options: Options, say: Say) -> Result:
    """Measure everything and return the result, which is also in ``options.output``.

    :param say: gets a line of text for every step
    :raises UpgradeError: where no machine could be prepared at all; a failed cell is part of the result
    """
    cache = Cache.default()
    say("finding the kernels")
    pair = kernels.resolve(options.kernel_from, cache), kernels.resolve(options.kernel_to, cache)
    say(f"preparing a machine with {' and '.join(sorted({kernel.release for kernel in pair}))}")
    disk = image.build(cache, pair)
    accel = accelerator.choose(cache, pair[0])
    clock = options.clock if options.clock != "auto" else ("host" if accel == KVM else "instructions")
    for memory_mib, count in options.matrix.left_out():
        say(f"left out: {count} x {memory_mib} MiB is more than this machine holds")
    result = Result(
        kernel_from=pair[0].release,
        kernel_to=pair[1].release,
        modes=tuple(dict.fromkeys(options.matrix.with_floor())),
        rounds=options.matrix.rounds,
        clock=clock,
        accelerator=accel if clock == "host" else accelerator.EMULATION.split(",")[0],
        started_at=now(),
    )
    if options.resume and options.output.exists():
        result = resumed(result, Result.load(options.output))
    runner = Runner(options, pair, disk, result, say, cache)
    runner.run()
    return result


def resumed(result: Result, before: Result) -> Result:
    """Return the earlier result without its failed cells, to go on with.

    :raises UsageError: where it was measured in another way
    """
    for name in ("kernel_from", "kernel_to", "clock", "accelerator"):
        was, now_is = getattr(before, name), getattr(result, name)
        if was != now_is:
            raise UsageError(
                f"was measured with {name} {was}, not {now_is}",
                subject="--resume",
                hint="write to another file with --output",
            )
    for row in before.rows:
        row.cells = [cell for cell in row.cells if cell.good]
    before.modes = tuple(mode.name for mode in MODES if mode.name in {*before.modes, *result.modes})
    before.rounds = max(before.rounds, result.rounds)
    before.finished_at = None
    return before


def now() -> str:
    """Return the time of day, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
