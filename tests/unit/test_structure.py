# SPDX-License-Identifier: MIT
"""Rules that the code as a whole keeps."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for package in ("upgrade", "memfs") for p in (ROOT / package).rglob("*.py"))

# Where the restore starts: what is imported there is downtime.
RESTORE = "upgrade.restore.main"
HEAVY = ("pyroute2", "psutil", "jinja2", "elftools", "numpy", "argparse", "pycriu", "asyncio", "google")
# Measured with Python 3.11: 140 modules beyond those that a bare interpreter has.
MOST_MODULES = 143

STARTS_PROCESSES = (
    "upgrade/process.py",
    "upgrade/criu.py",
    "memfs/store.py",
    "memfs/hotplug.py",
    "memfs/room.py",
    "memfs/swap.py",
    "upgrade/rehearse/",
)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the names of modules that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes(tree: ast.AST) -> Iterator[str]:
    """Yield every ``module.name`` that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def ends_process(tree: ast.AST) -> bool:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used = {*attributes(tree), *imports(tree)}
    return bool(used & {"sys.exit", "os._exit", "os.abort"} or names & {"SystemExit", "exit", "quit"})


def starts_process(tree: ast.AST) -> bool:
    found = {*attributes(tree), *imports(tree)}
    calls = (
        "os.system",
        "os.popen",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.exec",
        "os.spawn",
        "pty.",
    )
    modules = {name.split(".")[0] for name in imports(tree)}
    return bool(modules & {"subprocess", "multiprocessing", "pty"}) or any(n.startswith(calls) for n in found)


def offenders(rule: str) -> list[str]:
    """Return the files for which a rule says yes."""
    check = {"ends": ends_process, "starts": starts_process}[rule]
    return [str(p.relative_to(ROOT)) for p in SOURCES if check(ast.parse(p.read_text()))]


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("ends", "import sys\nsys.exit(1)", True),
        ("ends", "from os import _exit", True),
        ("ends", "raise SystemExit(1)", True),
        ("ends", "print('sys.exit')", False),
        ("starts", "import os\nos.execvp('x', [])", True),
        ("starts", "def f():\n    from subprocess import run", True),
        ("starts", "from upgrade.process import run", False),
    ],
)
def test_the_rules_find_what_they_look_for(rule: str, text: str, expected: bool) -> None:
    check = {"ends": ends_process, "starts": starts_process}[rule]
    assert check(ast.parse(text)) is expected


def test_only_the_command_line_ends_the_process() -> None:
    found = offenders("ends")
    assert "upgrade/cli/__init__.py" in found
    assert [name for name in found if not name.startswith("upgrade/cli/")] == []


def test_only_few_start_processes() -> None:
    found = offenders("starts")
    assert "upgrade/process.py" in found
    assert [name for name in found if not name.startswith(STARTS_PROCESSES)] == []


def test_what_survives_knows_nothing_of_containers() -> None:
    for path in (p for p in SOURCES if p.is_relative_to(ROOT / "memfs")):
        assert not [n for n in imports(ast.parse(path.read_text())) if n.split(".")[0] == "upgrade"], path


def test_every_file_says_whose_it_is_and_what_for() -> None:
    for path in SOURCES:
        text = path.read_text()
        if text:
            assert text.startswith("# SPDX-License-Identifier: MIT\n"), path
            assert ast.get_docstring(ast.parse(text)), path


def modules_after(statement: str) -> set[str]:
    """Return the modules that a bare interpreter has loaded after a statement."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n{statement}\nprint(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_the_restore_imports_nothing_heavy() -> None:
    found = modules_after(f"import {RESTORE}") - modules_after("")
    assert RESTORE in found
    assert sorted({name.split(".")[0] for name in found} & set(HEAVY)) == []
    assert len(found) <= MOST_MODULES, sorted(found)


def test_what_handles_frames_in_the_new_kernel_is_light() -> None:
    found = modules_after("import memfs.install, memfs.samples")
    assert sorted({name.split(".")[0] for name in found} & set(HEAVY)) == []


def test_the_command_itself_takes_the_short_way_to_the_restore() -> None:
    found = modules_after("import upgrade.cli")
    assert sorted({name.split(".")[0] for name in found} & set(HEAVY)) == []
    assert not any(name.startswith("upgrade.cli.") for name in found)


def test_every_verb_has_its_module() -> None:
    from upgrade.cli.parser import VERBS

    for verb in VERBS:
        known = ROOT / "upgrade" / "cli" / f"{verb}.py"
        assert verb == "restore" or known.exists(), verb
