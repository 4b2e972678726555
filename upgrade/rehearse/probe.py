# SPDX-License-Identifier: MIT
"""The programs that watch a guest from outside, from before the upgrade until after it."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from upgrade.errors import UpgradeError
from upgrade.process import environment
from upgrade.rehearse.network import Network
from upgrade.rehearse.workload import Workload

END_SECONDS = 60.0
Verdict = dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Probe:
    """A running probe. What it prints is its result."""

    workload: Workload
    process: "subprocess.Popen[bytes]"
    output: Path
    messages: Path

    def check(self) -> None:
        """Make sure that it runs; one that ends early has seen something, or does not work at all.

        :raises UpgradeError: where it has ended
        """
        if self.process.poll() is not None:
            said = f"{text(self.messages)}{text(self.output)}".strip()
            raise UpgradeError(
                f"ended with status {self.process.returncode} before the end: {said[-2000:]}",
                subject=f"probe of {self.workload.name}",
            )

    def stop(self) -> Verdict:
        """End it and return what it found out."""
        self.process.terminate()
        try:
            status = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        output = text(self.output)
        return {"exit_status": status, "output": output if status == 0 else output + text(self.messages)}


def start(workload: Workload, network: Network, directory: Path) -> Probe | None:
    """Start a workload's probe, if it has one; ``directory`` is its scratch directory."""
    if workload.probe is None:
        return None
    directory.mkdir(parents=True)
    ports = [network.outside_port(port) for port in workload.ports]
    env = {
        "PROBE_HOST": network.host,
        "PROBE_PORTS": " ".join(map(str, ports)),
        "PROBE_DIR": str(directory),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    output, messages = directory.with_suffix(".out"), directory.with_suffix(".err")
    command = [*network.prefix, "setpriv", "--pdeathsig", "TERM", str(workload.probe)]
    with output.open("wb") as out, messages.open("wb") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=directory,
            env=environment(env),
            start_new_session=True,
        )
    return Probe(workload, process, output, messages)


@contextmanager
def running(workloads: Sequence[Workload], network: Network, directory: Path) -> Iterator[list[Probe]]:
    """Run the probes of ``workloads``; those that nobody stopped are killed at the end."""
    with ExitStack() as stack:
        probes = []
        for workload in workloads:
            if probe := start(workload, network, directory / workload.name):
                stack.callback(kill, probe.process)
                probes.append(probe)
        yield probes


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Make sure that a process has ended."""
    if process.poll() is None:
        process.kill()
        process.wait()


def text(path: Path) -> str:
    """Return what was written to a file."""
    return path.read_text(errors="replace")
