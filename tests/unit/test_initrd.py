# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.initrd``: what is written is read by the real cpio and by a model of the kernel's reader."""

import gzip
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrade.kexec.cmdline import RDINIT
from upgrade.kexec.initrd import FIRST_USERSPACE, Entry, append, archive, segment

names = st.text(alphabet="abcXYZ-_.09ä", min_size=1, max_size=120).filter(lambda n: n.strip(".") != "")
entries = st.lists(
    st.builds(Entry, name=names, mode=st.just(stat.S_IFREG | 0o644), content=st.binary(max_size=50))
    | st.builds(Entry, name=names, mode=st.just(stat.S_IFDIR | 0o755))
    | st.builds(
        Entry,
        name=names,
        mode=st.just(stat.S_IFCHR | 0o600),
        device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    ),
    max_size=5,
    unique_by=lambda e: e.name,
)


def unpack(data: bytes) -> list[list[Entry]]:
    """Read concatenated archives as the kernel does (init/initramfs.c: do_header(), do_skip(), do_name())."""
    found: list[list[Entry]] = [[]]
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
            continue
        assert at % 4 == 0, "a header begins at a multiple of four bytes"
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        assert fields[4] == 1
        name = data[at + 110 : at + 110 + fields[11]]
        assert name.endswith(b"\0")
        body = (at + 110 + fields[11] + 3) & ~3
        at = (body + fields[6] + 3) & ~3
        if name == b"TRAILER!!!\0":
            found.append([])
            continue
        content = data[body : body + fields[6]]
        found[-1].append(Entry(name[:-1].decode(), fields[1], content, (fields[9], fields[10])))
    return found[:-1]


@given(entries)
def test_the_kernel_reads_what_was_written(content: list[Entry]) -> None:
    assert unpack(archive(content)) == [content]
    assert len(archive(content)) % 4 == 0


@given(entries)
@settings(max_examples=20, deadline=None)
def test_cpio_reads_what_was_written(content: list[Entry]) -> None:
    done = subprocess.run(["cpio", "-t", "--quiet", "-0"], input=archive(content), capture_output=True)
    assert done.stderr == b""
    shown = done.stdout.decode().split("\0") if b"\0" in done.stdout else done.stdout.decode().splitlines()
    assert [n for n in shown if n] == [e.name for e in content]


def test_cpio_unpacks_what_was_written(tmp_path: Path) -> None:
    content = [
        Entry("dir", stat.S_IFDIR | 0o750),
        Entry("dir/empty", stat.S_IFREG | 0o600),
        *(Entry(f"dir/{n}", stat.S_IFREG | 0o755, bytes(range(n))) for n in range(1, 9)),
    ]
    if os.geteuid() == 0:
        content.append(Entry("null", stat.S_IFCHR | 0o600, device=(1, 3)))
    command = ["cpio", "-i", "--quiet", "--no-absolute-filenames"]
    done = subprocess.run(command, input=archive(content), capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    for entry in content:
        state = (tmp_path / entry.name).lstat()
        assert state.st_mode == entry.mode
        if stat.S_ISREG(state.st_mode):
            assert (tmp_path / entry.name).read_bytes() == entry.content
        if stat.S_ISCHR(state.st_mode):
            assert (os.major(state.st_rdev), os.minor(state.st_rdev)) == entry.device


@pytest.mark.parametrize("length", range(8))
def test_our_segment_follows_any_initrd_at_a_multiple_of_four(length: int) -> None:
    ours = segment(900, 4194304, "/init")
    initrd = gzip.compress(b"x", mtime=0)[:18].ljust(20 + length, b"\1")
    whole = append(initrd, ours)
    assert whole.endswith(ours)
    assert (len(whole) - len(ours)) % 4 == 0
    assert whole.startswith(initrd)
    assert set(whole[len(initrd) : len(whole) - len(ours)]) <= {0}


def test_two_archives_are_read_one_after_the_other() -> None:
    first = archive([Entry("a", stat.S_IFREG | 0o644, b"abc")])
    assert [[e.name for e in part] for part in unpack(append(first, segment(900, 4194304, "/init")))] == [
        ["a"],
        ["proc", "seamless-upgrade-kmsg", RDINIT.lstrip("/")],
    ]


def test_the_first_userspace_raises_the_pid_floor_and_goes_on(tmp_path: Path) -> None:
    """The script is run by a real shell, in whose way only the paths are changed."""
    (entries_,) = unpack(segment(31337, 65536, str(tmp_path / "init")))
    modes = {e.name: e for e in entries_}
    assert modes["seamless-upgrade-kmsg"].device == (1, 11)
    assert stat.S_ISDIR(modes["proc"].mode)
    script = modes[RDINIT.lstrip("/")]
    assert script.mode == stat.S_IFREG | 0o755
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    text = script.content.decode()
    assert text.startswith("#!/bin/sh\n")
    for path in ("/proc/sys", "/seamless-upgrade-kmsg"):
        text = text.replace(f" {path}", f" {tmp_path}{path}")
    (tmp_path / "mount").write_text(f'#!/bin/sh\necho "$0 $*" >> {tmp_path}/log\n')
    (tmp_path / "mount").chmod(0o755)
    (tmp_path / "umount").symlink_to("mount")
    (tmp_path / "init").write_text(f'#!/bin/sh\necho "init $*" >> {tmp_path}/log\n')
    (tmp_path / "init").chmod(0o755)
    (tmp_path / "script").write_text(text)
    subprocess.run(["/bin/sh", tmp_path / "script", "single", "a b"], check=True, env={"PATH": str(tmp_path)})
    assert (tmp_path / "seamless-upgrade-kmsg").read_text() == FIRST_USERSPACE + "\n"
    assert (tmp_path / "proc/sys/kernel/ns_last_pid").read_text() == "31337\n"
    assert (tmp_path / "proc/sys/kernel/pid_max").read_text() == "65536\n"
    assert (tmp_path / "log").read_text().splitlines() == [
        f"{tmp_path}/mount -t proc proc /proc",
        f"{tmp_path}/umount /proc",
        "init single a b",
    ]
