# SPDX-License-Identifier: MIT
"""What many tests need: a fake machine, fake programs, a fake CRIU, directories of their own."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.criu import FakeCriu
from builders.host import Machine
from builders.programs import Programs
from builders.target import Target

from upgrade import paths
from upgrade.engines import bus


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine made of files."""
    return Machine(tmp_path / "machine")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Return the only programs that there are."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setattr("upgrade.process.PATH", str(directory))
    monkeypatch.setenv("PATH", str(directory))  # memfs calls programs, too
    return Programs(directory)


@pytest.fixture
def criu(tmp_path: Path, programs: Programs) -> FakeCriu:
    """Return a CRIU that does what it is told."""
    state = tmp_path / "criu-state"
    state.mkdir()
    return FakeCriu(programs.directory, state)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep everything that is written to ``/run`` and ``/var/lib`` below a directory, which is returned."""
    runtime, state = tmp_path / "run", tmp_path / "state"
    for base, directory in ((paths.RUNTIME, runtime), (paths.STATE, state)):
        directory.mkdir()
        for name in [name for name, value in vars(paths).items() if isinstance(value, Path)]:
            _move(monkeypatch, name, base, directory)
    paths.STORE.mkdir()
    return tmp_path


def _move(monkeypatch: pytest.MonkeyPatch, name: str, base: Path, directory: Path) -> None:
    path: Path = getattr(paths, name)
    if path.is_relative_to(base):
        monkeypatch.setattr(paths, name, directory / path.relative_to(base))


@pytest.fixture
def target(machine: Machine, criu: FakeCriu) -> Target:
    """Return a host with a kernel that can be entered."""
    return Target(machine)


@pytest.fixture
def listening(machine: Machine) -> Iterator[None]:
    """Let the bus listen."""
    place = machine.root / bus.SOCKET.lstrip("/")
    place.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen(16)
        yield
