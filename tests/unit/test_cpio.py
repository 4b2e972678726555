# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.cpio``."""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrade.errors import DependencyMissing, Refusal
from upgrade.kexec import cpio
from upgrade.kexec.initrd import Entry, archive

FILES = {
    "init": b"#!/bin/sh\n",
    "usr/lib/modules/6.12.1/kernel/fs/ext4.ko.xz": os.urandom(70_001),
    "etc/fstab": b"",
}
EARLY = {"kernel/x86/microcode/AuthenticAMD.bin": b"\x28\xb5\x2f\xfd070701TRAILER!!!" * 50}


def packed(files: dict[str, bytes]) -> bytes:
    return archive([Entry(name, stat.S_IFREG | 0o644, content) for name, content in files.items()])


def program(*command: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    return compress


# As mkinitramfs and dracut call them
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": program("zstd", "-q", "-9", "-c"),
    "zstd-checked": program("zstd", "-q", "-1", "-T0", "--check", "-c"),
    "zstd-of-runs": lambda data: program("zstd", "-q", "-c")(data + bytes(1 << 20)),
    "lz4": program("lz4", "-l", "-c"),
}
every_compression = pytest.mark.parametrize("name", COMPRESSIONS)


def listed(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return list(cpio.names(path))


@every_compression
def test_names_come_in_their_order(tmp_path: Path, name: str) -> None:
    assert listed(tmp_path / "initrd", COMPRESSIONS[name](packed(FILES))) == list(FILES)


@every_compression
def test_microcode_comes_first_and_more_may_follow(tmp_path: Path, name: str) -> None:
    early, more = packed(EARLY), packed({"seamless-upgrade-init": b"#!/bin/sh\n"})
    early += bytes(-len(early) % 512)
    compressed = COMPRESSIONS[name](packed(FILES))
    data = early + compressed + bytes(-len(compressed) % 4) + more + bytes(512)
    assert listed(tmp_path / "initrd", data) == [*EARLY, *FILES, "seamless-upgrade-init"]


@every_compression
def test_two_compressed_parts_follow_each_other(tmp_path: Path, name: str) -> None:
    parts = [COMPRESSIONS[name](packed(files)) for files in (EARLY, FILES)]
    data = b"".join(part + bytes(-len(part) % 4) for part in parts)
    assert listed(tmp_path / "initrd", data) == [*EARLY, *FILES]


@every_compression
@pytest.mark.parametrize("missing", [10, 2000, 30_000])
def test_what_ends_early_is_told(tmp_path: Path, name: str, missing: int) -> None:
    data = COMPRESSIONS[name](packed(FILES))
    with pytest.raises(Refusal, match="is no initrd that the kernel can unpack") as caught:
        listed(tmp_path / "initrd", data[:-missing])
    assert caught.value.subject == str(tmp_path / "initrd")
    assert "update-initramfs" in str(caught.value.hint)


def test_what_comes_before_the_damage_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(packed(FILES) + b"garbage!")
    names = cpio.names(tmp_path / "initrd")
    assert [next(names) for _ in FILES] == list(FILES)
    with pytest.raises(Refusal, match="unknown data at byte"):
        next(names)


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(100), b"070701" + b"x" * 200])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Refusal):
        listed(tmp_path / "initrd", data)


def test_the_package_of_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = COMPRESSIONS["zstd"](packed(FILES))
    monkeypatch.setattr("upgrade.process.PATH", str(tmp_path))
    with pytest.raises(DependencyMissing, match="zstd"):
        listed(tmp_path / "initrd", data)


def test_what_cpio_itself_makes_is_read(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    tree = tmp_path / "tree"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/sh").write_bytes(os.urandom(12_345))
    (tree / "bin").symlink_to("usr/bin")
    os.link(tree / "usr/bin/sh", tree / "usr/bin/dash")
    made = subprocess.run(
        "find . | cpio --quiet -o -H newc", shell=True, cwd=tree, capture_output=True, check=True
    )
    found = listed(tmp_path / "initrd", made.stdout)
    assert sorted(found) == [".", "bin", "usr", "usr/bin", "usr/bin/dash", "usr/bin/sh"]


@given(
    files=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=40),
        st.binary(max_size=50),
    ),
    name=st.sampled_from(["none", "gzip", "xz"]),
)
@settings(deadline=None, max_examples=50)
def test_any_files(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], name: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any-initrd"
    assert listed(path, COMPRESSIONS[name](packed(files))) == list(files)


@given(data=st.binary(min_size=1, max_size=300))
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    try:
        listed(path, data)
    except Refusal:
        return
    assert set(data) == {0}
