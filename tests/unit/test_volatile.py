# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.volatile`` and ``upgrade.restore.volatile``: files in memory, of a real process."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from upgrade.dump import volatile
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.kexec import filesystems
from upgrade.restore import volatile as back

USER = """
import mmap, os, sys
log = open("a/log", "a")
log.write("begun"); log.flush()
mapped = open("shared", "r+b")
view = mmap.mmap(mapped.fileno(), 0)
mapped.close()
gone = open("gone", "w"); os.unlink("gone")
disk = open(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a directory in a file system in memory."""
    directory = Path(tempfile.mkdtemp(prefix="seamless-upgrade-test-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def user(directory: Path, disk: Path) -> Iterator[int]:
    """Run a process that stands in a directory and uses files of it; yield its process id."""
    command = [sys.executable, "-c", USER, str(disk)]
    with subprocess.Popen(
        command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()


def facts(directory: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    """Return what is in a directory, to be compared."""
    found = {}
    for path in sorted(directory.rglob("*")):
        state = path.lstat()
        contents = os.readlink(path).encode() if path.is_symlink() else b""
        contents = path.read_bytes() if path.is_file() and not path.is_symlink() else contents
        found[str(path)] = (state.st_mode, state.st_uid, state.st_gid, state.st_mtime_ns, contents)
    return found


def test_what_a_process_uses_comes_back_as_it_was(memory: Path, tmp_path: Path) -> None:
    (memory / "a").mkdir(mode=0o710)
    os.chown(memory / "a", 1234, 1235)
    with open(memory / "shared", "wb") as file:
        file.truncate(8 << 20)
        file.seek(3 << 20)
        file.write(b"in the middle")
    (memory / "shared").chmod(0o640)
    (memory / "unused").write_text("nobody's")
    disk = tmp_path / "on-disk"
    disk.write_text("stays")
    images = tmp_path / "images"
    images.mkdir()
    with user(memory, disk) as pid:
        volatile.save(Host(), [pid], [], images)
    (memory / "unused").unlink()
    before = facts(memory)
    index = {entry["path"] for entry in json.loads((images / back.INDEX).read_text())}
    assert index == {str(memory), str(memory / "a"), str(memory / "a/log"), str(memory / "shared")}
    assert sum(path.stat().st_blocks * 512 for path in images.iterdir()) < 1 << 20  # holes are none of it
    shutil.rmtree(memory)
    back.restore(Host(), images)
    assert facts(memory) == before
    assert (memory / "shared").stat().st_size == 8 << 20


def test_a_directory_of_its_own_comes_back_whole(memory: Path, tmp_path: Path) -> None:
    own = memory / "run/service"
    (own / "deep").mkdir(parents=True)
    (own / "deep/file").write_text("x")
    (own / "link").symlink_to("deep/file")
    os.mkfifo(own / "fifo")
    (memory / "pid").write_text("7\n")
    before = facts(memory)
    volatile.save(Host(), [], [str(own), str(memory / "pid"), str(memory / "missing")], tmp_path)
    shutil.rmtree(memory)
    back.restore(Host(), tmp_path)
    assert facts(memory).keys() == before.keys() - {str(own / "fifo")}
    assert facts(memory)[str(own / "deep/file")] == before[str(own / "deep/file")]
    assert (own / "link").read_text() == "x"


def test_the_directory_of_a_socket_with_a_name_comes_back(memory: Path, tmp_path: Path) -> None:
    for name in ("pool", "gone", "elsewhere"):
        (memory / name).mkdir(mode=0o700)
    script = """
import os, socket, sys
sockets = [socket.socket(socket.AF_UNIX) for _ in range(3)]
sockets[0].bind(sys.argv[1] + "/pool/listener")
sockets[1].bind(sys.argv[1] + "/gone/listener"); os.unlink(sys.argv[1] + "/gone/listener")
sockets[2].bind("\\0" + sys.argv[1] + "/elsewhere/listener")
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(memory)]
    with subprocess.Popen(
        command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        volatile.save(Host(), [process.pid], [], tmp_path)
        process.stdin.close()
    shutil.rmtree(memory)
    back.restore(Host(), tmp_path)
    assert facts(memory).keys() == {str(memory / "pool")}
    assert (memory / "pool").stat().st_mode & 0o777 == 0o700


def test_what_the_boot_has_made_is_left_alone(memory: Path, tmp_path: Path) -> None:
    (memory / "file").write_text("old")
    volatile.save(Host(), [], [str(memory / "file")], tmp_path)
    (memory / "file").write_text("new")
    back.restore(Host(), tmp_path)
    assert (memory / "file").read_text() == "new"


def test_nothing_in_memory_is_nothing_to_do(tmp_path: Path) -> None:
    volatile.save(Host(), [], [str(tmp_path)], tmp_path)
    assert json.loads((tmp_path / back.INDEX).read_text()) == []
    back.restore(Host(), tmp_path)
    back.restore(Host(), tmp_path / "of an older version")


def test_too_much_is_refused() -> None:
    volatile.too_large(volatile.MOST_BYTES)
    with pytest.raises(UpgradeError, match="would have to be copied") as caught:
        volatile.too_large(volatile.MOST_BYTES + 1)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data", False),
        ("/run", True),
        ("/run/mine", True),
        ("/run/fuse/x", False),
        ("/runaway", False),
        ("/m/y", False),
        ("pipe:[7]", False),
    ],
)
def test_only_what_is_in_memory_is_looked_at(path: str, expected: bool) -> None:
    """A file of a FUSE server that is frozen as well must not be asked for its state."""
    kinds = [("/", "ext4"), ("/run", "tmpfs"), ("/run/fuse", "fuse.it"), ("/m", "tmpfs"), ("/m", "nfs4")]
    mounts = filesystems.parse(
        "\n".join(f"{n} 1 0:{n} / {where} rw - {kind} none rw" for n, (where, kind) in enumerate(kinds))
    )
    assert volatile.is_in_memory(path, mounts) is expected
