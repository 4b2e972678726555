# SPDX-License-Identifier: MIT
"""The programs of a benchmark: the container, the client outside, the order of cells."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import benchmarks
from hypothesis import given
from hypothesis import strategies as st

from upgrade.bench.guest import ballast
from upgrade.bench.guest.ballast import Gaps
from upgrade.bench.matrix import Matrix, Mode
from upgrade.bench.model import Cell, Result, Row
from upgrade.bench.runner import Options, Runner, resumed
from upgrade.bench.trial import OUTSIDE
from upgrade.errors import UpgradeError, UsageError
from upgrade.linux import tsc_reader

ROOT = Path(__file__).resolve().parents[2]
START = """
import sys
from pathlib import Path
from upgrade.bench.guest import ballast
ballast.PORT, ballast.WORK = int(sys.argv[1]), Path(sys.argv[2])
ballast.Ballast(0, 3).run()
"""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return a free port that ``ballast.ask`` uses."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        number = int(found.getsockname()[1])
    monkeypatch.setattr(ballast, "PORT", number)
    return number


@contextmanager
def container(port: int, work: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a ballast."""
    process = subprocess.Popen([sys.executable, "-c", START, str(port), str(work)], cwd=ROOT)
    try:
        ballast.ask(0, "gap", 30)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop a process and return when it stands still."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_container_knows_when_it_did_not_run(port: int, tmp_path: Path) -> None:
    tsc = tsc_reader()
    with container(port, tmp_path) as process:
        ballast.ask(0, "mark")
        marked = tsc()
        stop(process)
        still = tsc()
        while tsc() - still < 10**9:  # longer than any gap that a busy host makes
            pass
        moving = tsc()
        process.send_signal(signal.SIGCONT)
        gap = ballast.ask(0, "gap")
        # The last tick may have been before the mark's answer was read.
        assert gap["begin"] <= still
        assert gap["end"] >= moving
        assert gap["begin"] > marked - 10**9


def test_a_container_that_is_started_again_counts_from_its_end(port: int, tmp_path: Path) -> None:
    with container(port, tmp_path) as process:
        process.terminate()
        assert process.wait(30) == 0
    last = int((tmp_path / "last-0").read_text())
    with container(port, tmp_path):
        gap = ballast.ask(0, "gap")
        assert gap["begin"] == last
        assert gap["begin"] < gap["begun"] < gap["end"]
        verdict = ballast.ask(0, "verify")
        assert verdict["expected"] == verdict["found"]
    assert not (tmp_path / "last-0").exists()


def test_memory_is_told_from_another() -> None:
    memory, digest = ballast.fill(1, 2)
    assert ballast.digest_of(memory) == digest
    memory[5000] ^= 1
    assert ballast.digest_of(memory) != digest
    assert ballast.fill(2, 2)[1] != digest


def test_no_two_pages_are_the_same() -> None:
    pages = [
        block[start : start + 4096]
        for block in ballast.blocks(1, 16)
        for start in range(0, ballast.BLOCK_BYTES, 4096)
    ]
    assert len(set(pages)) == len(pages) == 16 * 256


@given(st.lists(st.integers(1, 1000), min_size=1))
def test_the_largest_gap_is_kept(steps: list[int]) -> None:
    gaps, now = Gaps(100), 100
    for step in steps:
        now += step
        gaps.tick(now)
    assert gaps.end - gaps.begin == max(steps)


@contextmanager
def outside(port: int) -> Iterator["subprocess.Popen[str]"]:
    """Run the client outside."""
    env = {**os.environ, "PROBE_HOST": "127.0.0.1", "PROBE_PORTS": str(port)}
    process = subprocess.Popen([OUTSIDE / "probe"], env=env, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def serve(server: socket.socket, answers: int) -> socket.socket:
    """Answer so many times and return the connection; one that its client gave up is passed over."""
    while True:
        connection, _ = server.accept()
        left = answers
        while left and (asked := connection.recv(100)):
            connection.sendall(asked)
            left -= 1
        if not left:
            return connection
        connection.close()


@pytest.mark.parametrize("silent", [False, True])
def test_the_client_outside_connects_again(silent: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, outside(server.getsockname()[1]) as client:
        first = serve(server, 3)
        if not silent:
            first.close()
        serve(server, 3).close()
        first.close()
        client.terminate()
        found: dict[str, Any] = json.loads(client.communicate(timeout=30)[0])
    assert found["connections"] >= 2
    assert found["replies"] > 3
    assert found["largest_gap_seconds"] > 0


class Fake:
    """Stands for a machine: says of each cell whether it works."""

    def __init__(self, broken: set[str], machine: Any = None) -> None:
        self.broken = broken
        self.machine = self
        self.console = "console.log"

    def measure(self, mode: Mode, number: int) -> Cell:
        if mode.name in self.broken:
            raise UpgradeError("it broke", subject=mode.name)
        return Cell(mode.name, number, downtime_seconds=1.0)


class FakeRunner(Runner):
    """Boots nothing."""

    booted = 0
    boots = True

    @contextmanager
    def _machine(self, row: Row) -> Iterator[Any]:
        self.booted += 1
        if not self.boots:
            raise UpgradeError("no machine")
        yield Fake({"images"})


def runner(tmp_path: Path, boots: bool) -> FakeRunner:
    matrix = Matrix(memory_mib=(64,), containers=(1,), rounds=2, modes=("copy", "images", "kexec"))
    result = benchmarks.result(memory=(), containers=())
    options = Options("a", "b", matrix, tmp_path / "bench.json")
    made = FakeRunner(options, None, None, result, lambda text: None, None)  # type: ignore[arg-type]
    made.boots = boots
    return made


@pytest.mark.timeout(20)
def test_a_failed_cell_costs_its_machine_and_nothing_else(tmp_path: Path) -> None:
    made = runner(tmp_path, boots=True)
    made.run()
    cells = made.result.rows[0].cells
    assert [(c.mode, c.good) for c in cells if c.round == 1] == [
        ("copy", True),
        ("images", False),
        ("kexec", True),
    ]
    assert len(cells) == 6
    assert made.booted == 3
    assert "it broke" in str(cells[1].error)
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert len(saved["rows"][0]["cells"]) == 6
    assert saved["finished_at"]


@pytest.mark.timeout(20)
def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first = runner(tmp_path, boots=True)
    first.run()
    again = runner(tmp_path, boots=False)
    again.result = resumed(again.result, Result.load(tmp_path / "bench.json"))
    again.run()
    cells = again.result.rows[0].cells
    assert [c.mode for c in cells if c.good] == [c.mode for c in first.result.rows[0].cells if c.good]
    assert [c.error for c in cells if not c.good] == ["no machine"] * 2
    assert again.booted == 2


def test_measurements_of_another_kind_are_not_mixed() -> None:
    before = benchmarks.result()
    with pytest.raises(UsageError, match="clock"):
        resumed(replace(benchmarks.result(), clock="host"), before)


@pytest.mark.timeout(20)
def test_no_machine_at_all_fails_every_cell_and_ends(tmp_path: Path) -> None:
    made = runner(tmp_path, boots=False)
    made.run()
    assert [cell.error for cell in made.result.rows[0].cells] == ["no machine"] * 6
