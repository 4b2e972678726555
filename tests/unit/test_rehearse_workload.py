# SPDX-License-Identifier: MIT
"""A wrong workload must be refused before anything is built, by a message that leads to the mistake."""

from pathlib import Path

import pytest

from upgrade.errors import UsageError
from upgrade.rehearse.workload import load, load_all


def make(directory: Path, description: str = 'name = "redis"\n', files: tuple[str, ...] = ()) -> Path:
    directory.mkdir(parents=True)
    (directory / "workload.toml").write_text(description)
    for hook in ("start", "verify"):
        (directory / hook).write_text("#!/bin/sh\n")
        (directory / hook).chmod(0o755)
    for name in files:
        path = directory / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return directory


def test_all_keys(tmp_path: Path) -> None:
    workload = load(
        make(
            tmp_path / "w",
            'name = "redis"\npackages = ["redis-server"]\nports = [6379]\ncontainers = ["web"]\n'
            'cgroups = ["/workload/redis"]\nmemory_mib = 64\n',
            files=("a/b",),
        )
    )
    assert workload.name == "redis"
    assert workload.packages == ("redis-server",)
    assert workload.ports == (6379,)
    assert workload.containers == ("web",)
    assert workload.cgroups == ("/workload/redis",)
    assert workload.memory_mib == 64
    assert workload.files() == [Path("a/b")]
    assert workload.probe is None


def test_unknown_key_names_file_key_and_what_was_meant(tmp_path: Path) -> None:
    directory = make(tmp_path / "w", 'name = "x"\ncgroup = ["/a"]\n')
    with pytest.raises(UsageError, match="unknown key cgroup") as caught:
        load(directory)
    assert caught.value.subject == str(directory / "workload.toml")
    assert caught.value.hint == "did you mean cgroups?"


def test_unknown_key_like_no_other_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(make(tmp_path / "w", 'name = "x"\nzzz = 1\n'))
    assert caught.value.hint is not None
    assert "memory_mib" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('ports = ["6379"]', "ports must be a list of numbers"),
        ("ports = [true]", "ports must be a list of numbers"),
        ('packages = "redis"', "packages must be a list of strings"),
        ("memory_mib = -1", "memory_mib must be a number of MiB"),
        ("memory_mib = true", "memory_mib must be a number of MiB"),
        ("name = 1", "name must be a string"),
        ('name = "../etc"', "name may have letters"),
        ('name = "x"\nname = "y"', "overwrite|twice|Cannot"),
        ("packages = []", "the key name is missing"),
    ],
)
def test_wrong_values(tmp_path: Path, line: str, complaint: str) -> None:
    text = line if line.startswith("name") or line == "packages = []" else f'name = "x"\n{line}'
    with pytest.raises(UsageError, match=complaint):
        load(make(tmp_path / "w", text + "\n"))


def test_missing_description(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a workload"):
        load(tmp_path)


@pytest.mark.parametrize("hook", ["start", "verify"])
def test_hooks_must_be_there_and_executable(tmp_path: Path, hook: str) -> None:
    directory = make(tmp_path / "w")
    (directory / hook).chmod(0o644)
    with pytest.raises(UsageError, match="not executable") as caught:
        load(directory)
    assert caught.value.subject == str(directory / hook)


def test_probe_must_be_executable_if_there_is_one(tmp_path: Path) -> None:
    directory = make(tmp_path / "w")
    (directory / "probe").touch()
    with pytest.raises(UsageError, match="not executable"):
        load(directory)


def test_no_workload_at_all() -> None:
    with pytest.raises(UsageError, match="at least one"):
        load_all([])


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ('name = "a"', 'name = "a"', "same name: a"),
        ('name = "a"\nports = [1]', 'name = "b"\nports = [1]', "same port: 1"),
        ('name = "a"', 'name = "b"', "same file: shared/file"),
    ],
)
def test_two_workloads_that_collide(tmp_path: Path, first: str, second: str, complaint: str) -> None:
    files = ("shared/file",) if "file" in complaint else ()
    directories = [make(tmp_path / "1", first, files), make(tmp_path / "2", second, files)]
    with pytest.raises(UsageError, match=complaint):
        load_all(directories)


def test_two_workloads_that_get_along(tmp_path: Path) -> None:
    directories = [make(tmp_path / name, f'name = "{name}"', (f"{name}/file",)) for name in ("a", "b")]
    assert [workload.name for workload in load_all(directories)] == ["a", "b"]


def test_the_workloads_of_this_project_are_valid() -> None:
    root = Path(__file__).parents[2] / "workloads"
    directories = sorted(path.parent for path in root.glob("*/workload.toml"))
    assert load_all(directories)
