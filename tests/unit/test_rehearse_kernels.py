# SPDX-License-Identifier: MIT
"""Kernels are found by suite, version or file, and a wrong name says what there is."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from upgrade.errors import UsageError
from upgrade.rehearse import kernels
from upgrade.rehearse.archive import Archive, Published, parse_dependency
from upgrade.rehearse.cache import Cache
from upgrade.rehearse.kernels import METAPACKAGE, Shelf

RELEASES = {
    "6.12.94+deb13-cloud-amd64": "trixie",
    "6.12.107+deb13-cloud-amd64": "trixie",
    "6.12.107+deb13-amd64": "trixie",
    "6.12.117+deb13-cloud-amd64": "trixie-security",
    "6.12.115+deb13-cloud-amd64": "trixie-updates",
    "7.2.13+deb14-cloud-amd64": "sid",
}
META = {"trixie": "6.12.107+deb13", "trixie-security": "6.12.117+deb13", "sid": "7.2.13+deb14"}


@dataclass(frozen=True)
class FakeArchive(Archive):
    """An archive that needs neither apt nor a network."""

    unpacked: list[dict[str, str]] = field(default_factory=list)

    def names(self, prefix: str) -> list[str]:
        packages = [f"linux-image-{release}" for release in RELEASES]
        return [*packages, f"{packages[0]}-dbg", f"{packages[0]}-unsigned", METAPACKAGE]

    def published(self, packages: Iterable[str]) -> list[Published]:
        wanted = list(packages)
        if wanted == [METAPACKAGE]:
            return [Published(METAPACKAGE, version, suite) for suite, version in META.items()]
        return [
            Published(name, f"{release.split('+')[0]}-1", suite)
            for release, suite in RELEASES.items()
            if (name := f"linux-image-{release}") in wanted
        ]

    def depends(self, package: str, version: str) -> list[tuple[str, str | None]]:
        if package == METAPACKAGE:
            return [("linux-base-cloud-amd64", version), (f"linux-image-{version}-cloud-amd64", version)]
        release = package.removeprefix("linux-image-")
        parts: list[tuple[str, str | None]] = [("kmod", None)]
        if release.startswith("7."):
            parts += [(f"linux-binary-{release}", version), (f"linux-modules-{release}", version)]
        return parts

    def unpack(self, packages: object, target: Path) -> None:
        assert isinstance(packages, dict)
        self.unpacked.append(packages)
        release = next(iter(packages)).removeprefix("linux-image-")
        modules = target / "usr/lib/modules" / release
        modules.mkdir(parents=True)
        (modules / "vmlinuz").touch()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(Cache(tmp_path), FakeArchive(tmp_path, kernels.SUITES))


@pytest.mark.parametrize(
    ("spec", "release"),
    [
        ("trixie", "6.12.107+deb13-cloud-amd64"),
        ("trixie-security", "6.12.117+deb13-cloud-amd64"),
        ("trixie-updates", "6.12.115+deb13-cloud-amd64"),  # has kernels, but no metapackage
        ("sid", "7.2.13+deb14-cloud-amd64"),
        ("6.12", "6.12.117+deb13-cloud-amd64"),
        ("6.12.94", "6.12.94+deb13-cloud-amd64"),
        ("6.12.107", "6.12.107+deb13-cloud-amd64"),
        ("6.12.107+deb13-cloud-amd64", "6.12.107+deb13-cloud-amd64"),
        ("6.12.107+deb13-amd64", "6.12.107+deb13-amd64"),
    ],
)
def test_names_of_kernels(shelf: Shelf, spec: str, release: str) -> None:
    assert shelf.choose(spec).package == f"linux-image-{release}"


@pytest.mark.parametrize("spec", ["6.12.10", "5.4", "bullseye", "linux", "", "6.12.94+deb13-cloud-amd64-dbg"])
def test_unknown_kernel_tells_what_there_is(shelf: Shelf, spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        shelf.choose(spec)
    assert caught.value.hint is not None
    for known in ("trixie-security", "7.2.13+deb14-cloud-amd64 (sid)", "6.12.107+deb13-cloud-amd64 (trixie)"):
        assert known in caught.value.hint


def test_a_kernel_in_several_packages_is_unpacked_once(shelf: Shelf) -> None:
    first = shelf.fetch(shelf.choose("sid"))
    assert shelf.fetch(shelf.choose("sid")) == first
    assert isinstance(shelf.archive, FakeArchive)
    assert [set(packages) for packages in shelf.archive.unpacked] == [
        {f"linux-{part}-7.2.13+deb14-cloud-amd64" for part in ("image", "binary", "modules")}
    ]
    assert first.release == "7.2.13+deb14-cloud-amd64"
    assert first.modules.name == first.release
    assert first.vmlinuz.is_file()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" kmod", ("kmod", None)),
        ("linux-base-7.2 (= 7.2.13-1)", ("linux-base-7.2", "7.2.13-1")),
        ("initramfs-tools (>= 0.120) | linux-initramfs-tool", ("initramfs-tools", None)),
        ("dracut | initramfs-tools (= 1)", ("dracut", None)),
        ("python3:any (= 3.13-1)", ("python3", "3.13-1")),
    ],
)
def test_dependencies(text: str, expected: tuple[str, str | None]) -> None:
    assert parse_dependency(text) == expected


def bzimage(version: str, pointer: int = 0x3000) -> bytes:
    head = bytearray(0x8000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = pointer.to_bytes(2, "little")
    text = version.encode() + b"\0"
    if pointer:
        head[0x200 + pointer : 0x200 + pointer + len(text)] = text
    return bytes(head)


def test_release_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage("6.12.1-my (root@here) #1 SMP Mon Jan 1"))
    assert kernels.read_release(path) == "6.12.1-my"


@pytest.mark.parametrize("content", [b"", b"MZ" + bytes(0x400), bzimage("6.12", pointer=0), bzimage("")])
def test_files_that_are_no_kernels(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        kernels.read_release(path)
    assert caught.value.subject == str(path)


@pytest.mark.parametrize("modules", ["boot/lib/modules", "lib/modules", "usr/lib/modules"])
def test_modules_beside_a_file(tmp_path: Path, modules: str) -> None:
    path = tmp_path / "boot/vmlinuz-6.12.1"
    path.parent.mkdir()
    path.write_bytes(bzimage("6.12.1"))
    (path.parent / "config-6.12.1").touch()
    tree = tmp_path / modules / "6.12.1"
    tree.mkdir(parents=True)
    found = kernels.resolve(str(path))
    assert found == kernels.Kernel("6.12.1", path, tree, path.parent / "config-6.12.1")


def test_a_file_without_modules(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage("6.12.1"))
    with pytest.raises(UsageError, match=r"no modules of 6\.12\.1") as caught:
        kernels.resolve(str(path))
    assert caught.value.hint is not None
    assert str(tmp_path / "lib/modules/6.12.1") in caught.value.hint
