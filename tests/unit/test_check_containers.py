# SPDX-License-Identifier: MIT
"""Real tasks of this machine: each limit of CRIU is found, and what CRIU can dump is not refused.

The programs are those that tests/vm/test_check_containers.py shows to CRIU as well.
"""

import ast
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from upgrade.check import containers
from upgrade.check.containers import sockets, volatile
from upgrade.check.model import Finding, Status
from upgrade.check.processes import Process
from upgrade.check.situation import Situation
from upgrade.config import Config
from upgrade.dump.volatile import MOST_BYTES, find
from upgrade.engines import Container
from upgrade.host import Host
from upgrade.request import Request

VM = Path(__file__).resolve().parents[1] / "vm"
CHECKS = {check.id: check for check in containers.CHECKS if not check.asked}
# These ask an engine, or the whole host
ALONE = sorted(CHECKS.keys() - {"containers.found", "containers.addresses", "containers.pids"})
# They change what this machine has beside the process, or need a Python that it has not
NOT_HERE = {"uprobe", "child_outside", "tun"}
# They mount something
MOUNTING = {"covered_file", "hidden_mount", "detached_mount", "inotify_overlay", "inotify_deleted"}
PATIENCE_S = 60
Start = Callable[[Path], Situation]


def programs(kind: str) -> list[Path]:
    return sorted(p for p in (VM / kind).glob("*.py") if p.stem not in NOT_HERE)


def expected(program: Path) -> str:
    values = {
        ast.unparse(node.targets[0]): node.value
        for node in ast.parse(program.read_text()).body
        if isinstance(node, ast.Assign)
    }
    return str(ast.literal_eval(values["CHECK"]))


def situation_of(root: int, pids: list[int], *, host_network: bool = True) -> Situation:
    """Return a situation with one container of some processes."""
    container = Container("it", "cgroup", "/workload/it", root, host_pids=True, host_network=host_network)
    found = Situation(Host(), Request(), Config())
    found.__dict__["containers"] = [container]
    found.__dict__["tasks"] = [(container, pid) for pid in pids]
    return found


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, without those that have ended."""
    found = [pid]
    for child in Process(Host(), Container("", "cgroup", "", pid, True, True), pid).children:
        found += descendants(child)
    return [p for p in found if "Z" not in (Process(Host(), _nobody(), p).stat or ["Z"])[:1] or p == pid]


def _nobody() -> Container:
    return Container("", "cgroup", "", 1, host_pids=True, host_network=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return what starts a program and waits until its condition is there."""
    started: list[subprocess.Popen[bytes]] = []
    before = set(Host().pids())

    def begin(program: Path) -> Situation:
        name = f"{program.parent.name}-{program.stem}"
        words = [sys.executable, os.fspath(program)]
        if program.stem in MOUNTING:
            words = ["unshare", "--mount", "--propagation", "private", *words]
        environment = {**os.environ, "PYTHONPATH": os.fspath(VM), "CONDITIONS": os.fspath(tmp_path)}
        with (tmp_path / "stderr").open("wb") as errors:
            process = subprocess.Popen(words, stderr=errors, env=environment, start_new_session=True)
        started.append(process)
        said = tmp_path / name
        deadline = time.monotonic() + PATIENCE_S
        while not said.exists() and process.poll() is None:
            assert time.monotonic() < deadline, "it says nothing"
            time.sleep(0.005)
        text = (
            said.read_text()
            if said.exists()
            else (process.communicate()[1] or b"ended").decode().splitlines()[-1]
        )
        if text != "ready":
            pytest.skip(text)
        root = int((tmp_path / f"{name}.pid").read_text())
        return situation_of(root, descendants(root))

    yield begin
    for process in started:
        for pid in [pid for pid in Host().pids() if pid not in before and _is_ours(pid, tmp_path)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()  # also if it has no environment any more
        process.wait()


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Look with the eyes of CRIU 4.2, as 4.1 dumps no sockets of this machine's kernel; but it knew fewer kinds."""
    known = (4, 1) if "undumpable" in request.node.name else (4, 2)
    monkeypatch.setattr(sockets, "criu_version", lambda: known)


def _is_ours(pid: int, state: Path) -> bool:
    try:
        return f"CONDITIONS={state}" in Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return False


def findings(situation: Situation, status: Status) -> dict[str, list[Finding]]:
    found = {name: [f for f in CHECKS[name].run(situation) if f.status is status] for name in ALONE}
    return {name: those for name, those in found.items() if those}


@pytest.mark.parametrize(
    "program", [*programs("undumpable"), *programs("unrestorable")], ids=lambda p: p.stem
)
def test_undumpable(start: Start, program: Path) -> None:
    situation = start(program)
    found = list(CHECKS[expected(program)].run(situation))
    failed = [finding for finding in found if finding.status is Status.FAIL]
    assert failed, found
    finding = failed[0]
    assert finding.subject == "it"
    assert finding.seen.startswith("PID ")
    assert finding.source.startswith("/proc/")
    assert finding.reason
    assert finding.remedy


@pytest.mark.parametrize("program", programs("dumpable"), ids=lambda p: p.stem)
def test_dumpable(start: Start, program: Path) -> None:
    situation = start(program)
    failed = findings(situation, Status.FAIL)
    if program.stem == "bpf_map":  # it depends on how CRIU was built
        assert set(failed) <= {"containers.descriptors"}
    else:
        assert failed == {}


def test_everything_passes() -> None:
    process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        situation = situation_of(process.pid, [process.pid])
        for name in ALONE:
            found = list(CHECKS[name].run(situation))
            assert [f.status for f in found] == [Status.PASS], (name, found)
    finally:
        process.kill()
        process.wait()


def test_what_has_ended_is_no_trouble() -> None:
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    situation = situation_of(process.pid, [process.pid])
    assert findings(situation, Status.FAIL) == {}


def test_this_command() -> None:
    situation = situation_of(os.getpid(), [os.getpid()])
    seen = [f.seen for f in CHECKS["containers.tasks"].run(situation) if f.status is Status.FAIL]
    assert any("is this very command" in text for text in seen)


def test_pipe_with_an_end_outside(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        (found,) = CHECKS["containers.pipes"].run(situation_of(process.pid, [process.pid]))
        assert found.status is Status.WARN
        assert f"process {os.getpid()}" in found.seen
    finally:
        process.communicate()


@pytest.fixture
def shell() -> Iterator[Callable[[str, str], int]]:
    """Return what runs a script in new namespaces, and then sleeps there."""
    started: list[subprocess.Popen[str]] = []

    def begin(namespaces: str, script: str) -> int:
        words = ["unshare", *namespaces.split(), "sh", "-ec", f"{script}; echo ready; exec sleep 1000"]
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if said != "ready":
            pytest.skip(said)
        return process.pid

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("mib", "status"), [(1, Status.PASS), (20, Status.WARN)])
def test_tmpfs(shell: Callable[[str, str], int], tmp_path: Path, mib: int, status: Status) -> None:
    pid = shell(
        "--mount --propagation private",
        f"umount -a -t tmpfs 2>/dev/null || true; mount -t tmpfs it {tmp_path}; "
        f"dd if=/dev/zero of={tmp_path}/file bs=1M count={mib} status=none",
    )
    found = list(CHECKS["containers.tmpfs"].run(situation_of(pid, [pid])))
    mine = [f for f in found if str(tmp_path) in f.seen]
    assert [f.status for f in mine] == ([Status.WARN] if status is Status.WARN else [])


@pytest.mark.parametrize(
    ("bytes_", "status"),
    [
        (volatile.MUCH_BYTES - (1 << 20), Status.PASS),
        (volatile.MUCH_BYTES + (1 << 20), Status.WARN),
        (MOST_BYTES + (1 << 20), Status.FAIL),
    ],
)
def test_files_in_memory(monkeypatch: pytest.MonkeyPatch, bytes_: int, status: Status) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        real = find(Host(), [os.getpid()], [])
        assert real[file.name]["bytes"] == 1 << 20
        monkeypatch.setattr(
            "upgrade.dump.volatile.find",
            lambda *_: {file.name: {"bytes": bytes_}, "/run/other": {"bytes": 0}},
        )
        (found,) = CHECKS["containers.volatile"].run(situation_of(os.getpid(), [os.getpid()]))
    assert found.status is status
    if status is not Status.PASS:
        assert f"{bytes_ >> 20} MiB" in found.seen
        assert file.name in found.seen
        assert found.remedy


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("true", Status.PASS),
        ("ip link add it type bridge", Status.PASS),
        ("ip link add it type dummy", Status.FAIL),
    ],
)
def test_network_devices(shell: Callable[[str, str], int], script: str, status: Status) -> None:
    pid = shell("--net", script)
    (found,) = CHECKS["containers.links"].run(situation_of(pid, [pid], host_network=False))
    assert found.status is status, found
