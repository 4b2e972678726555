# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.load``: the system call is replaced, the command is a fake."""

import ctypes
import errno
import os
from pathlib import Path

import pytest
from builders.host import Machine
from builders.programs import Programs

from memfs import libc
from upgrade import linux
from upgrade.errors import ExitStatus, Refusal
from upgrade.host import Host
from upgrade.kexec import load

INITRD = bytes(range(256)) * 100


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    (tmp_path / "vmlinuz").write_bytes(b"the kernel")
    return tmp_path / "vmlinuz"


def deny(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(number, f"kexec_file_load: {os.strerror(number)}")

    monkeypatch.setattr(linux, "kexec_file_load", refuse)


def test_the_system_call_gets_the_whole_of_both_files(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs
) -> None:
    got: list[object] = []

    def take(kernel_fd: int, initrd_fd: int, command_line: str) -> None:
        got.extend([os.pread(kernel_fd, 1 << 20, 0), os.pread(initrd_fd, 1 << 20, 0), command_line])

    monkeypatch.setattr(linux, "kexec_file_load", take)
    assert load.load(kernel, INITRD, "quiet x") == "kexec_file_load"
    assert got == [b"the kernel", INITRD, "quiet x"]
    assert programs.calls() == []


def test_the_command_is_asked_where_the_call_says_no(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs, tmp_path: Path
) -> None:
    deny(monkeypatch, errno.EPERM)
    copy = tmp_path / "copy"
    programs.add(
        "kexec", f'for w in "$@"; do case $w in --initrd=*) cat "${{w#--initrd=}}" > {copy};; esac; done'
    )
    assert load.load(kernel, INITRD, "quiet 'x' y") == "kexec_load"
    (call,) = programs.calls("kexec")
    assert call[1:4] == ["--load", "--kexec-syscall", str(kernel)]
    assert "--command-line=quiet 'x' y" in call
    assert copy.read_bytes() == INITRD
    (initrd,) = (word.removeprefix("--initrd=") for word in call if word.startswith("--initrd="))
    assert not Path(initrd).exists()


@pytest.mark.parametrize("number", [*load._REASONS, errno.EINVAL, errno.ENOMEM])
def test_a_refusal_gives_both_reasons_and_a_remedy(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs, number: int
) -> None:
    deny(monkeypatch, number)
    programs.add("kexec", "echo 'Cannot load it' >&2; exit 255")
    with pytest.raises(Refusal) as caught:
        load.load(kernel, INITRD, "quiet")
    error = caught.value
    reason, hint = load._REASONS.get(number, (os.strerror(number), error.hint))
    assert reason in error.message
    assert "Cannot load it" in error.message
    assert (error.subject, error.hint, error.status) == (str(kernel), hint, ExitStatus.REFUSED)
    assert error.hint


def test_without_the_command_there_is_still_a_refusal(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs
) -> None:
    deny(monkeypatch, errno.EKEYREJECTED)
    with pytest.raises(Refusal, match="signature is not trusted; kexec_load: not installed"):
        load.load(kernel, INITRD, "quiet")
    assert programs.calls() == []


def test_the_real_call_refuses_what_is_no_kernel(kernel: Path, programs: Programs) -> None:
    programs.add("kexec", "exit 1")
    with pytest.raises(Refusal, match="cannot be loaded"):
        load.load(kernel, INITRD, "quiet")
    assert len(programs.calls("kexec")) == 1


def test_whether_a_kernel_is_loaded(machine: Machine) -> None:
    assert not load.is_loaded(machine.host)
    machine.file("/sys/kernel/kexec_loaded", "0")
    assert not load.is_loaded(machine.host)
    machine.file("/sys/kernel/kexec_loaded", "1")
    assert load.is_loaded(machine.host)


def test_where_there_is_only_the_older_call_it_unloads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def call(name: str, _number: int, *arguments: object) -> int:
        flags = arguments[-1]
        assert isinstance(flags, ctypes.c_ulong)
        asked.append((name, flags.value))
        if name == "kexec_file_load":
            raise OSError(errno.ENOSYS, name)
        return 0

    monkeypatch.setattr(libc, "call", call)
    linux.kexec_unload()
    assert asked == [("kexec_file_load", linux.KEXEC_FILE_UNLOAD), ("kexec_load", 0)]


@pytest.mark.parametrize(
    ("numbers", "there"),
    [
        ((errno.EINVAL, errno.EINVAL), ("kexec_file_load", "kexec_load")),
        ((errno.EPERM, errno.ENOSYS), ("kexec_file_load",)),
        ((errno.ENOSYS, errno.EPERM), ("kexec_load",)),
        ((errno.ENOSYS, errno.ENOSYS), ()),
    ],
)
def test_which_calls_there_are(
    monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, int], there: tuple[str, ...]
) -> None:
    answers = dict(zip(("kexec_file_load", "kexec_load"), numbers, strict=True))

    def call(name: str, _number: int, *arguments: object) -> int:
        flags = arguments[-1]
        assert isinstance(flags, ctypes.c_ulong)
        assert flags.value == (1 << 64) - 1  # never a flag that means something alone
        raise OSError(answers[name], name)

    monkeypatch.setattr(libc, "call", call)
    assert linux.kexec_calls() == there


def test_asking_the_real_kernel_loads_nothing() -> None:
    before = load.is_loaded(Host())
    assert set(linux.kexec_calls()) <= {"kexec_file_load", "kexec_load"}
    assert load.is_loaded(Host()) == before
