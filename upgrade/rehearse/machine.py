# SPDX-License-Identifier: MIT
"""A machine that is thrown away afterwards: boots a kernel in QEMU, runs commands, survives kexec."""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

from upgrade.errors import UpgradeError
from upgrade.process import CommandFailed
from upgrade.rehearse.agent import Agent, AgentSilent, CommandLost
from upgrade.rehearse.cache import Cache
from upgrade.rehearse.console import Console
from upgrade.rehearse.guest import SEED_DIRECTORY, SEED_LABEL
from upgrade.rehearse.launch import launched
from upgrade.rehearse.network import Network
from upgrade.rehearse.qmp import Monitor
from upgrade.rehearse.spec import MachineSpec

__all__ = ["Machine", "MachineFailed", "MachineSpec"]

BOOT_ID = "/proc/sys/kernel/random/boot_id"
BOOT_TIMEOUT_SECONDS = 180.0
QUIT_SECONDS = 10.0
PROBE_SECONDS = 2.0
PAUSE_SECONDS = 0.1

T = TypeVar("T")


class MachineFailed(UpgradeError):
    """The guest panicked, QEMU ended, or the guest did not come up in time."""


@dataclass(slots=True)
class Machine:
    """A running machine; :meth:`boot` makes one."""

    spec: MachineSpec
    process: "subprocess.Popen[bytes]"
    agent: Agent
    log: Console
    network: Network
    monitor: Path
    terminal: Path
    accelerator: str
    # Where this kernel's part of the console begins; what came before belongs to earlier kernels.
    started_at: int = 0

    @classmethod
    @contextmanager
    def boot(cls, spec: MachineSpec, cache: Cache | None = None) -> Iterator["Machine"]:
        """Boot a machine and wait for its agent; it ends with the block, unless ``spec.keep``.

        :raises MachineFailed: where it does not come up
        """
        with launched(spec, cache or Cache.default()) as found:
            machine = cls(
                spec=spec,
                process=found.process,
                agent=Agent(found.devices.agent),
                log=Console(found.devices.console),
                network=found.network,
                monitor=found.devices.monitor,
                terminal=found.devices.terminal,
                accelerator=found.accelerator,
            )
            try:
                machine.wait_for_agent(BOOT_TIMEOUT_SECONDS)
            except BaseException:
                machine.switch_off()
                raise
            try:
                yield machine
            finally:
                machine.end()

    @property
    def address(self) -> str:
        """Where clients outside reach the guest."""
        return self.network.host

    @property
    def console(self) -> Path:
        """The file with everything the guest wrote to its serial console."""
        return self.log.path

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        check: bool = True,
        input: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program in the guest to its end.

        :param timeout: seconds
        :raises CommandFailed: where ``check`` is true and the exit status is not zero
        :raises CommandLost: where the kernel was replaced meanwhile
        :raises MachineFailed: where the guest or QEMU is no more
        """
        command = ["env", "-C", cwd, *argv] if cwd else list(argv)
        data = input.encode() if input is not None else None
        done = self._guarded(lambda: self.agent.run(command, timeout=timeout, input=data, env=env))
        out, err = (part.decode(errors="replace") for part in (done.stdout, done.stderr))
        if check and done.returncode != 0:
            raise CommandFailed(list(argv), done.returncode, err or out)
        return subprocess.CompletedProcess(list(argv), done.returncode, out, err)

    def shell(
        self, script: str, *, timeout: float = 60.0, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run a script with ``sh -e``."""
        return self.run(["sh", "-ec", script], timeout=timeout, check=check)

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest, with the directories it needs."""
        self.run(["install", "-D", "-m", f"{mode:o}", "/dev/null", path])
        self._guarded(lambda: self.agent.append(path, content))

    def get(self, path: str) -> bytes:
        """Return a file of the guest."""
        return self._guarded(lambda: self.agent.read(path))

    def mount_seed(self) -> str:
        """Mount the seed and return where; after a kexec it has to be done again."""
        self.shell(
            f"mkdir -p {SEED_DIRECTORY}; mountpoint -q {SEED_DIRECTORY} ||"
            f" mount -o ro -L {SEED_LABEL} {SEED_DIRECTORY}"
        )
        return SEED_DIRECTORY

    def boot_id(self) -> str:
        """Return what tells this boot of the guest from others; a kexec changes it."""
        return self.get(BOOT_ID).decode().strip()

    def wait_for_agent(self, timeout: float) -> None:
        """Wait until the guest's agent answers.

        :raises MachineFailed: after ``timeout`` seconds, or as soon as it is clear that it never will
        """
        self.wait_until(lambda: True, timeout, "the guest did not come up")

    def wait_for_new_kernel(self, old_boot_id: str, timeout: float) -> str:
        """Wait until another kernel runs and its agent answers; return the new boot id.

        :raises MachineFailed: after ``timeout`` seconds, or as soon as it is clear that it never will
        """
        self.wait_until(lambda: self.boot_id() != old_boot_id, timeout, "no new kernel came up")
        self.started_at = self.log.size
        return self.boot_id()

    def wait_until(self, ready: Callable[[], bool], timeout: float, problem: str) -> None:
        """Wait until the agent answers and ``ready`` says yes; while there is no kernel it is asked later.

        :param timeout: seconds
        :param problem: what to say where it takes longer
        :raises MachineFailed: where it takes longer, or as soon as it is clear that it never will be
        """
        attempts = Retrying(
            stop=stop_after_delay(timeout),
            wait=wait_fixed(PAUSE_SECONDS),
            retry=retry_if_result(lambda answer: not answer)
            | retry_if_exception_type((AgentSilent, CommandLost)),
        )
        try:
            attempts(self._ask, ready)
        except RetryError as e:
            raise self._failure(f"{problem} within {timeout:g} s") from e

    def reset(self, timeout: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Press the reset button: the first kernel boots again, memory keeps what it holds."""
        self.started_at = self.log.size
        self.agent.close()
        with Monitor.connect(self.monitor) as monitor:
            # -no-reboot turns every reset into an end of QEMU; it is to stay in force for all others.
            monitor.command("set-action", {"reboot": "reset"})
            monitor.command("system_reset")
            monitor.event("RESET")
            monitor.command("set-action", {"reboot": "shutdown"})
        self.wait_for_agent(timeout)

    def reboot(self, timeout: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Have the guest reboot itself in the ordinary way, through its boot loader if its disk has one.

        :raises MachineFailed: after ``timeout`` seconds, or as soon as it is clear that it never will
        """
        old = self.boot_id()
        with Monitor.connect(self.monitor) as monitor:
            monitor.command("set-action", {"reboot": "reset"})
        self.agent.start(["systemctl", "reboot"])
        self.wait_for_new_kernel(old, timeout)
        with Monitor.connect(self.monitor) as monitor:
            monitor.command("set-action", {"reboot": "shutdown"})

    def check(self) -> None:
        """Make sure that the machine is alive.

        :raises MachineFailed: where QEMU ended or the guest panicked
        """
        if self.process.poll() is not None:
            raise self._failure(f"QEMU ended with status {self.process.returncode}")
        if panic := self.log.panic(self.started_at):
            raise self._failure(f"the guest panicked: {panic}")

    def end(self) -> None:
        """Switch the machine off, unless it is to be kept."""
        self.agent.close()
        if not self.spec.keep:
            self.switch_off()

    def switch_off(self) -> None:
        """End QEMU, politely first."""
        try:
            with Monitor.connect(self.monitor) as monitor:
                monitor.command("quit")
        except UpgradeError:
            self.process.terminate()
        try:
            self.process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ask(self, ready: Callable[[], bool]) -> bool:
        self.check()
        self.agent.sync(PROBE_SECONDS)
        return ready()

    def _guarded(self, action: Callable[[], T]) -> T:
        """Do something with the agent; where it is silent because the machine is dead, say so."""
        try:
            return action()
        except AgentSilent:
            self.check()
            raise

    def _failure(self, message: str) -> MachineFailed:
        end = self.log.last_lines()
        return MachineFailed(f"{message}; the console ends with:\n{end}", hint=f"see {self.console}")
