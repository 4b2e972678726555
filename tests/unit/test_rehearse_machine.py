# SPDX-License-Identifier: MIT
"""How machines are put together, and what is said when one fails; nothing here boots."""

import itertools
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from upgrade.errors import UsageError
from upgrade.rehearse import accelerator, network, outcome, rehearsal, userland
from upgrade.rehearse.agent import Agent
from upgrade.rehearse.cache import Cache
from upgrade.rehearse.console import Console
from upgrade.rehearse.image import Image
from upgrade.rehearse.kernels import Kernel
from upgrade.rehearse.machine import Machine, MachineFailed, MachineSpec
from upgrade.rehearse.network import Network
from upgrade.rehearse.qemu import Devices, command_line, kernel_arguments
from upgrade.rehearse.rehearsal import Options
from upgrade.rehearse.workload import Workload

KERNEL = Kernel("6.12.1", Path("/k/vmlinuz"), Path("/k/modules"))
SPEC = MachineSpec(image=Image(Path("/i"), (KERNEL,)), kernel=KERNEL)
USER_NETWORK = Network("127.0.0.1", "user")


def option(command: list[str], name: str) -> list[str]:
    return [value for flag, value in itertools.pairwise(command) if flag == name]


def test_command_line() -> None:
    devices = Devices(Path("/d"), Path("/s"), with_seed=True)
    command = command_line(SPEC, devices, USER_NETWORK, "tcg,thread=multi")
    assert "-no-reboot" in command
    assert option(command, "-m") == ["4096M"]
    assert option(command, "-accel") == ["tcg,thread=multi"]
    assert option(command, "-kernel") == ["/k/vmlinuz"]
    assert option(command, "-initrd") == ["/i/initrd.img-6.12.1"]
    disks = option(command, "-drive")
    assert "file=/d/disk.qcow2" in disks[0]
    assert "readonly=on" in disks[1]


def test_no_seed_no_second_disk() -> None:
    command = command_line(SPEC, Devices(Path("/d"), Path("/s")), USER_NETWORK, "kvm")
    assert len(option(command, "-drive")) == 1


def test_kernel_arguments() -> None:
    assert "memmap=1024M!4G" in kernel_arguments(SPEC).split()
    assert "memmap" not in kernel_arguments(replace(SPEC, store_mib=0))
    assert kernel_arguments(replace(SPEC, append="quiet  debug")).endswith("quiet debug")
    assert ("getty" in kernel_arguments(SPEC), "getty" in kernel_arguments(replace(SPEC, keep=True))) == (
        True,
        False,
    )


def test_repeatable_machines_count_instructions() -> None:
    devices = Devices(Path("/d"), Path("/s"))
    command = command_line(replace(SPEC, repeatable=True), devices, USER_NETWORK, "kvm")
    assert option(command, "-accel") == ["tcg"]
    assert option(command, "-smp") == ["1"]
    assert "-icount" in command


def test_network_without_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with network.connect((80, 6379)) as connection:
        assert connection.host == "127.0.0.1"
        assert connection.prefix == []
        outside = connection.outside_port(80)
        assert outside != connection.outside_port(6379)
        assert f"hostfwd=tcp:127.0.0.1:{outside}-:80" in connection.netdev


def test_console(tmp_path: Path) -> None:
    console = Console(tmp_path / "console")
    assert console.size == 0
    assert console.panic() is None
    console.path.write_bytes(b"one\r\ntwo\r\n[1.0] Kernel panic - not syncing: VFS: no root\r\nthree\xff\r\n")
    assert console.last_lines(2).startswith("[1.0] Kernel panic")
    assert console.panic() == "Kernel panic - not syncing: VFS: no root"
    assert console.panic(start=console.size) is None


def machine(tmp_path: Path, command: list[str]) -> Machine:
    process = subprocess.Popen(command)
    return Machine(
        spec=SPEC,
        process=process,
        agent=Agent(tmp_path / "agent"),
        log=Console(tmp_path / "console"),
        network=USER_NETWORK,
        monitor=tmp_path / "qmp",
        terminal=tmp_path / "terminal",
        accelerator="tcg",
    )


def test_a_machine_that_died_says_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "console").write_text("".join(f"line {n}\n" for n in range(100)))
    dead = machine(tmp_path, ["sh", "-c", "exit 3"])
    dead.process.wait()
    with pytest.raises(MachineFailed, match="QEMU ended with status 3") as caught:
        dead.wait_for_agent(timeout=60)
    assert "line 70\n" in caught.value.message
    assert "line 69\n" not in caught.value.message
    assert caught.value.hint == f"see {tmp_path / 'console'}"


def test_a_panic_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "console").write_text("Kernel panic - not syncing: Attempted to kill init!\n")
    panicked = machine(tmp_path, ["sleep", "60"])
    try:
        with pytest.raises(MachineFailed, match="Attempted to kill init"):
            panicked.run(["true"], timeout=60)
    finally:
        panicked.end()
    assert panicked.process.returncode is not None


def test_kept_machines_run_on(tmp_path: Path) -> None:
    kept = machine(tmp_path, ["sleep", "60"])
    kept.spec = replace(SPEC, keep=True)
    kept.end()
    assert kept.process.poll() is None
    kept.process.kill()
    kept.process.wait()


def test_what_was_found_out_about_kvm_counts_for_one_boot(tmp_path: Path) -> None:
    memory = tmp_path / "kvm.json"
    assert accelerator.remembered(memory, "a") is None
    memory.write_text(json.dumps({"boot_id": "a", "works": False}))
    assert accelerator.remembered(memory, "a") is False
    assert accelerator.remembered(memory, "b") is None
    memory.write_text("{")
    assert accelerator.remembered(memory, "a") is None


def test_cache_entries_are_complete_or_absent(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(target: Path) -> None:
        target.mkdir()
        (target / "half").touch()
        raise OSError

    def succeed(target: Path) -> None:
        target.mkdir()
        (target / "whole").touch()

    with pytest.raises(OSError):
        cache.entry("kind", "key", fail)
    assert not (tmp_path / "kind/key").exists()
    assert [path.name for path in cache.entry("kind", "key", succeed).iterdir()] == ["whole"]
    assert cache.entry("kind", "key", fail) == tmp_path / "kind/key"


def test_recipes_differ_by_packages_only_when_they_do() -> None:
    base = userland.Recipe.of()
    assert userland.Recipe.of(["redis-server"]) == base  # every guest has it
    assert userland.Recipe.of(["b", "a"]).key == userland.Recipe.of(["a", "b", "a"]).key
    assert userland.Recipe.of(["a"]).key != base.key


def test_upgrade_command() -> None:
    workloads = [
        Workload(Path("/w1"), "a", containers=("web", "db")),
        Workload(Path("/w2"), "b", cgroups=("/workload/b",)),
    ]
    command = rehearsal.upgrade_command(workloads, "6.12.2", "quiet")
    assert option(command, "--container") == ["web", "db"]
    assert option(command, "--cgroup") == ["/workload/b"]
    assert option(command, "--kernel") == ["/boot/vmlinuz-6.12.2"]
    assert option(command, "--initrd") == ["/boot/initrd.img-6.12.2"]
    assert command[-1] == "--append=quiet"
    assert "--yes" in command


def test_machine_grows_with_its_workloads() -> None:
    options = Options("trixie", "sid", ())
    small, large = (Workload(Path("/w"), "w", memory_mib=mib) for mib in (64, 4096))
    assert rehearsal.machine_spec(options, [small], SPEC.image, KERNEL).memory_mib == 3072
    grown = rehearsal.machine_spec(options, [large], SPEC.image, KERNEL)
    assert grown.memory_mib >= 2 * 4096
    assert grown.store_mib >= 4096
    assert rehearsal.machine_spec(replace(options, store_mib=0), [large], SPEC.image, KERNEL).store_mib == 0
    assert (
        rehearsal.machine_spec(replace(options, memory_mib=2048), [large], SPEC.image, KERNEL).memory_mib
        == 2048
    )


def test_refusal_is_told_in_the_words_of_the_product() -> None:
    answer = json.dumps({"error": {"subject": "web", "message": "has a GPU", "hint": "stop it"}})
    error = outcome.refusal(3, answer, "")
    assert "status 3: web: has a GPU" in str(error)
    assert error.hint == "stop it"
    assert outcome.refusal(1, "[]", "").status == 1
    assert "Traceback" in str(outcome.refusal(1, "", "Traceback (most recent call last)"))


def test_no_rounds() -> None:
    with pytest.raises(UsageError):
        Options("trixie", "sid", (), rounds=0)


GOOD: dict[str, int | str] = {"exit_status": 0, "output": "ok"}
BAD: dict[str, int | str] = {"exit_status": 1, "output": "lost"}


def outcome_of(
    verified: dict[str, dict[str, int | str]] | None,
    probed: dict[str, dict[str, int | str]],
    status: dict[str, int | str] = GOOD,
) -> outcome.Outcome:
    done: outcome.Result = {"report": {"id": "x"}, "status": status}
    if verified is not None:
        done["verify"] = verified
    workloads = [Workload(Path("/w"), name) for name in (verified or {"a": GOOD})]
    return outcome.Outcome((KERNEL, KERNEL), workloads, [done], probed, None, 1.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (outcome_of({"a": GOOD}, {}), True),
        (outcome_of({"a": GOOD}, {"a": GOOD}), True),
        (outcome_of({"a": GOOD, "b": BAD}, {}), False),
        (outcome_of({"a": GOOD}, {"a": BAD}), False),
        (outcome_of({"a": GOOD}, {}, status=BAD), False),
        (outcome_of(None, {}), False),
    ],
)
def test_a_rehearsal_passes_only_if_all_is_well(found: outcome.Outcome, expected: bool) -> None:
    assert found.passed is expected


def test_result_for_one_and_for_several_workloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "versions", lambda machine: {})
    dead = machine(tmp_path, ["true"])
    dead.process.wait()
    one = outcome_of({"a": GOOD}, {}).to_json(dead)
    assert one["verify"] == GOOD
    assert one["probe"] is None
    assert one["workloads"] == {"a": {"preserved": [], "verify": GOOD, "probe": None}}
    two = outcome_of({"a": GOOD, "b": BAD}, {"a": GOOD}).to_json(dead)
    assert two["verify"] == {"a": GOOD, "b": BAD}
    assert two["probe"] == {"a": GOOD}
    assert two["outcome"] == "failed"
    json.dumps(two)
