# SPDX-License-Identifier: MIT
"""The one door for subprocesses.

Standard input is ``/dev/null`` unless given, the environment is scrubbed, output is captured, a missing
program becomes :class:`DependencyMissing` with the package to install.
"""

import logging
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO

from upgrade.errors import DependencyMissing, UpgradeError

log = logging.getLogger(__name__)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Debian package of each program we call, where it is not named like the program.
PACKAGES = {
    "apt-get": "apt",
    "busctl": "systemd",
    "docker": "docker-cli",
    "dpkg-deb": "dpkg",
    "ip": "iproute2",
    "kexec": "kexec-tools",
    "lz4": "lz4",
    "lzop": "lzop",
    "mke2fs": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "modprobe": "kmod",
    "mount": "mount",
    "nft": "nftables",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "systemctl": "systemd",
    "systemd-run": "systemd",
    "umount": "mount",
}


class CommandFailed(UpgradeError):
    """A command ended with a status that was not expected."""

    def __init__(self, command: Sequence[str], returncode: int, stderr: str) -> None:
        last = stderr.strip().splitlines()[-5:]
        super().__init__(f"exit status {returncode}: {' | '.join(last) or 'no output'}", subject=command[0])
        self.command = list(command)
        self.returncode = returncode
        self.stderr = stderr


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the scrubbed environment of our subprocesses."""
    kept = {k: os.environ[k] for k in ("HOME", "TERM", "TMPDIR") if k in os.environ}
    return {"PATH": PATH, "LANG": "C.UTF-8", **kept, **(extra or {})}


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    check: bool = True,
    input: str | None = None,
    timeout: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it said.

    :param timeout: seconds; afterwards the command is killed and :class:`UpgradeError` raised
    :raises CommandFailed: where ``check`` is true and the exit status is not zero
    :raises DependencyMissing: where the program is not installed
    """
    argv = [os.fspath(part) for part in command]
    log.debug("+ %s", shlex.join(argv))
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env=environment(env),
        )
    except FileNotFoundError as e:
        if cwd is not None and not cwd.is_dir():
            raise
        raise missing(argv[0]) from e
    except PermissionError as e:
        raise UpgradeError(f"cannot be executed: {e.strerror}", subject=argv[0]) from e
    except subprocess.TimeoutExpired as e:
        raise UpgradeError(f"no answer within {timeout} s: {shlex.join(argv)}", subject=argv[0]) from e
    if check and done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stderr or done.stdout)
    return done


def run_bytes(
    command: Sequence[str | os.PathLike[str]], *, input: bytes, timeout: float | None = None
) -> bytes:
    """Run a filter on ``input`` and return its standard output, untouched.

    :param timeout: seconds; afterwards the command is killed and :class:`UpgradeError` raised
    :raises CommandFailed: where the exit status is not zero
    :raises DependencyMissing: where the program is not installed
    """
    argv = [os.fspath(part) for part in command]
    log.debug("+ %s", shlex.join(argv))
    with _memory("input") as given, _memory("output") as made, _memory("errors") as said:
        given.write(input)
        given.seek(0)
        try:
            done = subprocess.run(
                argv, stdin=given, stdout=made, stderr=said, timeout=timeout, env=environment()
            )
        except FileNotFoundError as e:
            raise missing(argv[0]) from e
        except subprocess.TimeoutExpired as e:
            raise UpgradeError(f"no answer within {timeout} s: {shlex.join(argv)}", subject=argv[0]) from e
        if done.returncode != 0:
            said.seek(0)
            raise CommandFailed(argv, done.returncode, said.read().decode(errors="replace"))
        made.seek(0)
        return made.read()


def _memory(name: str) -> FileIO:
    """Return a file in memory: a pipe would need somebody to fill or empty it, 64 KiB at a time."""
    return open(os.memfd_create(name), "w+b", buffering=0)


@contextmanager
def reading(command: Sequence[str | os.PathLike[str]], *, input: bytes) -> Iterator[IO[bytes]]:
    """Run a filter on ``input`` and read its output as it comes; it is killed if that is not read to its end.

    :raises DependencyMissing: where the program is not installed
    """
    argv = [os.fspath(part) for part in command]
    log.debug("+ %s", shlex.join(argv))
    with _memory("input") as file:
        file.write(input)
        file.seek(0)
        try:
            process = subprocess.Popen(
                argv, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
            )
        except FileNotFoundError as e:
            raise missing(argv[0]) from e
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()  # nothing happens if it has ended


def run_detaching(
    command: Sequence[str | os.PathLike[str]], *, timeout: float, env: Mapping[str, str] | None = None
) -> int:
    """Run a command that leaves processes behind, and return its exit status.

    Those inherit its standard streams, which are ``/dev/null``: nobody can wait for the end of their output.

    :param timeout: seconds; afterwards the command is killed and :class:`UpgradeError` raised
    """
    argv = [os.fspath(part) for part in command]
    null = subprocess.DEVNULL
    try:
        return subprocess.run(
            argv, stdin=null, stdout=null, stderr=null, timeout=timeout, env=environment(env)
        ).returncode
    except FileNotFoundError as e:
        raise missing(argv[0]) from e
    except subprocess.TimeoutExpired as e:
        raise UpgradeError(f"no answer within {timeout} s: {shlex.join(argv)}", subject=argv[0]) from e


def missing(program: str) -> DependencyMissing:
    """Return the error for a program that is not installed."""
    name = os.path.basename(program)
    return DependencyMissing(
        "not installed", subject=name, hint=f"apt-get install {PACKAGES.get(name, name)}"
    )
