# SPDX-License-Identifier: MIT
"""Machines for the tests. One runs at a time: each module's fixture ends its own."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from upgrade.rehearse import image, kernels, rehearsal, seed, workload
from upgrade.rehearse.cache import Cache
from upgrade.rehearse.kernels import Kernel
from upgrade.rehearse.machine import Machine, MachineSpec
from upgrade.rehearse.workload import Workload

REPOSITORY = Path(__file__).resolve().parents[2]
WORKLOADS = REPOSITORY / "workloads"
PROGRAM = "seamless-upgrade"
PATIENCE_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here: it boots machines."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)


@dataclass(frozen=True)
class Answer:
    """What the command in the guest said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Its result."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def error(self) -> dict[str, Any]:
        """Its error object."""
        found: dict[str, Any] = self.json["error"]
        return found


@dataclass
class Guest:
    """A machine with the product installed, and workloads running in it."""

    machine: Machine
    kernels: tuple[Kernel, Kernel]
    workloads: list[Workload]

    @property
    def target(self) -> str:
        """The kernel image to go to."""
        return f"/boot/vmlinuz-{self.kernels[1].release}"

    def command(self, *words: str, timeout: float = PATIENCE_S) -> Answer:
        """Run the command to its end; it must not jump."""
        done = self.machine.run([PROGRAM, *words], timeout=timeout, check=False)
        return Answer(done.returncode, done.stdout, done.stderr)

    def upgrade(self, *words: str) -> Answer:
        """Run an upgrade that is expected to stay with the old kernel."""
        return self.command("run", "--yes", "--json", "--kernel", self.target, *words)

    def jump(self, target: str, *words: str, lose_terminal: bool = False) -> None:
        """Upgrade and wait until the new kernel has restored everything.

        :param lose_terminal: kill the command as soon as the run has begun
        """
        old = self.machine.boot_id()
        self.shell("rm -f /run/seamless-upgrade/events.jsonl")
        command = [PROGRAM, "run", "--yes", "--json", "--kernel", f"/boot/vmlinuz-{target}", *words]
        self.machine.agent.start(
            ["sh", "-c", 'echo $$ >/root/pid; exec "$@" >/root/out 2>/root/err', "sh", *command]
        )
        if lose_terminal:
            self.wait("test -s /run/seamless-upgrade/events.jsonl")
            self.shell("kill -KILL $(cat /root/pid)")
        self.machine.wait_for_new_kernel(old, PATIENCE_S)

    def shell(self, script: str, *, check: bool = True) -> str:
        """Run a script in the guest."""
        return self.machine.shell(script, check=check, timeout=PATIENCE_S).stdout

    def verify(self, *names: str) -> dict[str, str]:
        """Return what the verify programs of workloads found wrong."""
        wrong = {}
        for name in names:
            program = f"{rehearsal.HOOKS}/{name}/verify"
            done = self.machine.run([program], cwd=rehearsal.WORK, timeout=PATIENCE_S, check=False)
            if done.returncode != 0:
                wrong[name] = done.stdout + done.stderr
        return wrong

    def traces(self) -> dict[str, str]:
        """Return everything that a run could leave behind."""
        return {
            "rules": self.shell("nft list ruleset"),
            "mounts": self.shell(
                "awk '{print $2, $3}' /proc/mounts | grep -v -e autofs -e /run/user -e /run/credentials | sort"
            ),
            "loaded kernel": self.shell("cat /sys/kernel/kexec_loaded"),
            "frozen": self.shell("grep -rs 1 /sys/fs/cgroup --include=cgroup.freeze || true"),
            "state": self.shell("ls /var/lib/seamless-upgrade"),
            "request": self.shell(
                "ls /run/seamless-upgrade/request.json /run/seamless-upgrade/memory 2>&1 || true"
            ),
            "quiesce": self.shell("ls /run/systemd/system"),
            "criu": self.shell("pgrep -x criu || true"),
        }

    def services(self) -> set[str]:
        """Return the services and sockets that run, without those that come and go by themselves."""
        command = (
            "systemctl list-units --plain --no-legend --full --state=active --type=service,socket,timer,path"
        )
        names = {line.split()[0] for line in self.shell(command).splitlines() if line.strip()}
        return {
            name for name in names if not name.startswith(("systemd-hostnamed", "user@", "user-runtime-dir@"))
        }

    def wait(self, script: str, seconds: float = 120) -> None:
        """Wait until a script succeeds."""
        deadline = time.monotonic() + seconds
        while self.machine.shell(script, check=False).returncode != 0:
            assert time.monotonic() < deadline, f"still not: {script}"
            time.sleep(0.5)


@pytest.fixture(scope="session")
def cache() -> Cache:
    """Where images are kept between runs."""
    return Cache.default()


@pytest.fixture(scope="session")
def pair(cache: Cache) -> tuple[Kernel, Kernel]:
    """Two kernels of trixie, side by side as after an ordinary security update."""
    return kernels.resolve("trixie", cache), kernels.resolve("trixie-security", cache)


@dataclass
class Guests:
    """Boots guests."""

    cache: Cache
    pair: tuple[Kernel, Kernel]

    def boot(
        self,
        names: Sequence[str] = (),
        *,
        store_mib: int = 1024,
        frames_mib: int = 0,
        frames_ranges: int = 1,
        environment: Mapping[str, str] | None = None,
        packages: Sequence[str] = (),
    ) -> Iterator[Guest]:
        """Boot a guest with some of the shipped workloads, which are started with some more environment."""
        workloads = workload.load_all([WORKLOADS / name for name in names]) if names else []
        wanted = sorted({*packages, *(name for each in workloads for name in each.packages)})
        spec = MachineSpec(
            image=image.build(self.cache, self.pair, wanted),
            kernel=self.pair[0],
            store_mib=store_mib,
            frames_mib=frames_mib,
            frames_ranges=frames_ranges,
            seed={**seed.code(), **{f"/workloads/{each.name}": each.directory for each in workloads}},
        )
        with Machine.boot(spec, self.cache) as machine:
            guest = Guest(machine, self.pair, workloads)
            rehearsal.settle(machine)
            rehearsal.install(machine)
            for each in workloads:
                rehearsal.settle_in(machine, each)
                start = ["env", *(f"{k}={v}" for k, v in (environment or {}).items())]
                start.append(f"{rehearsal.HOOKS}/{each.name}/start")
                machine.run(start, cwd=rehearsal.WORK, timeout=PATIENCE_S)
            yield guest


@pytest.fixture(scope="session")
def guests(cache: Cache, pair: tuple[Kernel, Kernel]) -> Guests:
    """Something that boots guests."""
    return Guests(cache, pair)
