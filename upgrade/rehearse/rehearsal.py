# SPDX-License-Identifier: MIT
"""A rehearsal: boot one kernel, start workloads, upgrade to another, see whether they survived."""

import json
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upgrade.errors import UpgradeError, UsageError
from upgrade.process import CommandFailed
from upgrade.rehearse import image, kernels, probe, seed, workload
from upgrade.rehearse.agent import AgentError
from upgrade.rehearse.cache import Cache
from upgrade.rehearse.guest import PROGRAM
from upgrade.rehearse.kernels import Kernel
from upgrade.rehearse.machine import Machine, MachineSpec
from upgrade.rehearse.outcome import Outcome, Result, refusal
from upgrade.rehearse.probe import Probe, Verdict
from upgrade.rehearse.workload import Workload

WORK = "/opt/workload"
HOOKS = f"{WORK}/.hooks"
RUN = "/run/rehearsal"

# Everything is much slower under emulation; these only end what hangs.
SETTLE_SECONDS = 180.0
INSTALL_SECONDS = 600.0
HOOK_SECONDS = 900.0
UPGRADE_SECONDS = 900.0
STATUS_SECONDS = 600.0

# What a guest needs besides its workloads, and how much a workload takes at most: once where it runs, once
# where it comes back.
SYSTEM_MIB = 2048
LEAST_MEMORY_MIB, LEAST_STORE_MIB, LEAST_FRAMES_MIB = 3072, 1024, 1024

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to rehearse. ``rounds`` upgrades are done in one machine, to and fro."""

    kernel_from: str
    kernel_to: str
    workloads: tuple[Path, ...]
    memory_mib: int | None = None
    store_mib: int | None = None
    frames_mib: int | None = None
    """The range in which page frames stay; with none pages are copied."""
    append: str = ""
    keep: bool = False
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError("must be at least 1", subject="--rounds")


@dataclass(slots=True)
class Rehearsal:
    """One rehearsal under way."""

    options: Options
    workloads: list[Workload]
    kernels: tuple[Kernel, Kernel]
    machine: Machine
    say: Say
    rounds: list[Result] = field(default_factory=list)

    def prepare(self) -> None:
        """Install the product and start the workloads."""
        settle(self.machine)
        install(self.machine)
        for each in self.workloads:
            self.say(f"starting {each.name}")
            settle_in(self.machine, each)
            self._hook(each, "start", check=True)
        self.machine.run(["sync"])

    def upgrade(self, probes: Sequence[Probe]) -> None:
        """Upgrade as often as was asked for, and verify each time.

        :raises UpgradeError: where the machine stays with the old kernel, or comes up with none
        """
        for number in range(self.options.rounds):
            for each in probes:
                each.check()
            source, target = self.kernels if number % 2 == 0 else self.kernels[::-1]
            self.say(f"upgrade {number + 1} of {self.options.rounds}: {source.release} -> {target.release}")
            done: Result = {"kernel_from": source.release, "kernel_to": target.release, "report": None}
            self.rounds.append(done)
            self._enter(target)
            done["status"] = self._status()
            done["report"] = self._report()
            done["verify"] = {each.name: self._verify(each) for each in self.workloads}

    def _enter(self, target: Kernel) -> None:
        """Have the product enter ``target``; it answers only if it did not do that."""
        old = self.machine.boot_id()
        command = shlex.join(upgrade_command(self.workloads, target.release, self.options.append))
        # Not as a unit of its own: the upgrade stops units. The agent, whose child this is, stays.
        script = (
            f"mkdir -p {RUN}; {command} >{RUN}/out 2>{RUN}/err; echo $? >{RUN}/new; mv {RUN}/new {RUN}/status"
        )
        self.machine.shell(f"rm -rf {RUN}")
        self.machine.agent.start(["sh", "-c", script])
        self.machine.wait_until(
            lambda: self.machine.boot_id() != old or self._answer(f"{RUN}/status") is not None,
            UPGRADE_SECONDS,
            "the new kernel did not come up",
        )
        status = self._answer(f"{RUN}/status")
        if status is not None and self.machine.boot_id() == old:
            raise refusal(int(status), self._answer(f"{RUN}/out") or "", self._answer(f"{RUN}/err") or "")
        release = self.machine.run(["uname", "-r"]).stdout.strip()
        if release != target.release:
            raise UpgradeError(f"the machine came back with {release}", subject=target.release)
        self.say(f"{release} runs")

    def _answer(self, path: str) -> str | None:
        """Return a file of the guest, if it is there."""
        try:
            return self.machine.get(path).decode(errors="replace").strip()
        except AgentError:
            return None

    def _status(self) -> Verdict:
        done = self.machine.run([PROGRAM, "status", "--wait"], timeout=STATUS_SECONDS, check=False)
        return {"exit_status": done.returncode, "output": done.stdout + done.stderr}

    def _report(self) -> Any:
        done = self.machine.run([PROGRAM, "report", "--json"], check=False)
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise UpgradeError(f"no report: {done.stdout}{done.stderr}", subject=PROGRAM) from None

    def _verify(self, each: Workload) -> Verdict:
        self.say(f"verifying {each.name}")
        done = self._hook(each, "verify", check=False)
        return {"exit_status": done.returncode, "output": done.stdout + done.stderr}

    def _hook(self, each: Workload, hook: str, *, check: bool) -> Any:
        try:
            return self.machine.run(
                [f"{HOOKS}/{each.name}/{hook}"], cwd=WORK, timeout=HOOK_SECONDS, check=check
            )
        except CommandFailed as e:
            raise UpgradeError(f"{hook} failed: {e.stderr.strip()[-2000:]}", subject=each.name) from e


def rehearse(options: Options, say: Say) -> Result:
    """Rehearse an upgrade and return what came of it.

    :param say: gets a line of text for every step
    :raises UpgradeError: where it did not get as far as an upgrade; a failed upgrade is a result
    """
    began = time.monotonic()
    cache = Cache.default()
    workloads = workload.load_all(options.workloads)
    say("finding the kernels")
    pair = kernels.resolve(options.kernel_from, cache), kernels.resolve(options.kernel_to, cache)
    say(f"preparing a machine with {pair[0].release} and {pair[1].release}; the first time takes minutes")
    disk = image.build(cache, pair, sorted({name for each in workloads for name in each.packages}))
    spec = machine_spec(options, workloads, disk, pair[0])
    with ExitStack() as stack:
        say("booting")
        machine = stack.enter_context(Machine.boot(spec, cache))
        say(f"{pair[0].release} runs ({machine.accelerator}); its console: {machine.console}")
        if options.keep:
            stack.callback(lambda: say(how_to_reach(machine)))
        rehearsal = Rehearsal(options, workloads, pair, machine, say)
        rehearsal.prepare()
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="probes-")))
        with probe.running(workloads, machine.network, work) as probes:
            error = attempt(lambda: rehearsal.upgrade(probes), machine)
            probed = {each.workload.name: each.stop() for each in probes}
        seconds = time.monotonic() - began
        return Outcome(pair, workloads, rehearsal.rounds, probed, error, seconds).to_json(machine)


def attempt(action: Callable[[], None], machine: Machine) -> UpgradeError | None:
    """Do it and return what went wrong, with the place to look at."""
    try:
        action()
    except UpgradeError as e:
        e.hint = e.hint or f"see {machine.console}"
        return e
    return None


def machine_spec(
    options: Options, workloads: Sequence[Workload], disk: image.Image, kernel: Kernel
) -> MachineSpec:
    """Return the machine that a rehearsal needs."""
    taken = sum(each.memory_mib for each in workloads)
    return MachineSpec(
        image=disk,
        kernel=kernel,
        memory_mib=options.memory_mib or max(LEAST_MEMORY_MIB, SYSTEM_MIB + 2 * taken),
        store_mib=max(LEAST_STORE_MIB, 2 * taken) if options.store_mib is None else options.store_mib,
        frames_mib=max(LEAST_FRAMES_MIB, 2 * taken) if options.frames_mib is None else options.frames_mib,
        ports=tuple(port for each in workloads for port in each.ports),
        seed={**seed.code(), **{f"/workloads/{each.name}": each.directory for each in workloads}},
        keep=options.keep,
    )


def settle(machine: Machine) -> None:
    """Wait until the guest has nothing left to do; devices are still being set up when its units are done."""
    wait = "systemctl is-system-running --wait || true; udevadm settle"
    machine.shell(wait, timeout=SETTLE_SECONDS)


def install(machine: Machine) -> None:
    """Install this project in the guest, from the seed."""
    code = f"{machine.mount_seed()}/code"
    if machine.run(["test", "-e", PROGRAM], check=False).returncode == 0:
        return
    machine.run([f"{code}/scripts/install"], cwd=code, timeout=INSTALL_SECONDS)


def settle_in(machine: Machine, each: Workload) -> None:
    """Put a workload's files and hooks to their places in the guest."""
    source = f"{machine.mount_seed()}/workloads/{each.name}"
    machine.shell(
        f"mkdir -p {HOOKS}/{each.name}; cp {source}/start {source}/verify {HOOKS}/{each.name}/;"
        f" [ ! -d {source}/files ] || cp -rT {source}/files {WORK}"
    )


def upgrade_command(workloads: Sequence[Workload], release: str, append: str) -> list[str]:
    """Return the command that upgrades the guest."""
    command = [PROGRAM, "run", "--yes", "--json"]
    command += ["--kernel", f"/boot/vmlinuz-{release}", "--initrd", f"/boot/initrd.img-{release}"]
    for each in workloads:
        command += [part for name in each.containers for part in ("--container", name)]
        command += [part for path in each.cgroups for part in ("--cgroup", path)]
    return [*command, f"--append={append}"] if append else command


def how_to_reach(machine: Machine) -> str:
    """Return what somebody needs who wants to look into a machine that was kept."""
    lines = [
        f"the machine runs on as process {machine.process.pid}",
        f"  log in:    socat -,raw,echo=0,escape=0x1d unix-connect:{machine.terminal}   (leave with Ctrl-])",
    ]
    network = machine.network
    if network.namespace:
        lines.append(f"  outside:   {shlex.join(network.prefix)} bash   (the guest is {network.host})")
    end = f"kill {machine.process.pid}" + (f"; ip netns del {network.namespace}" if network.namespace else "")
    return "\n".join([*lines, f"  end it:    {end}"])
