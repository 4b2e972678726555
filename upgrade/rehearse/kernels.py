# SPDX-License-Identifier: MIT
"""The kernels a rehearsal goes from and to: found by name, fetched, unpacked."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from upgrade.errors import UpgradeError, UsageError
from upgrade.rehearse.archive import Archive, Published
from upgrade.rehearse.cache import Cache, digest

SUITES = ("trixie", "trixie-updates", "trixie-security", "sid")

# The cloud flavour has virtio and ext4 close at hand and boots fastest.
METAPACKAGE = "linux-image-cloud-amd64"
PREFIX = "linux-image-"
FLAVOUR = "-cloud-amd64"

# Fields of the header of a bzImage (Documentation/arch/x86/boot.rst).
MAGIC_OFFSET, MAGIC = 0x202, b"HdrS"
VERSION_OFFSET, VERSION_BASE = 0x20E, 0x200
LONGEST_RELEASE = 256


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that a machine can boot.

    ``modules`` is the tree of this release itself, ``.../lib/modules/RELEASE``.
    """

    release: str
    vmlinuz: Path
    modules: Path
    config: Path | None = None


def resolve(spec: str, cache: Cache | None = None) -> Kernel:
    """Return the kernel that a user calls ``spec``.

    ``spec`` is a suite of Debian, a version in one of these suites or its beginning, or a path to a vmlinuz.

    :raises UsageError: where there is no such kernel; it lists what there is
    """
    if "/" in spec:
        return from_file(Path(spec))
    cache = cache or Cache.default()
    shelf = Shelf(cache, Archive.open(cache, SUITES))
    return shelf.fetch(shelf.choose(spec))


def from_file(vmlinuz: Path) -> Kernel:
    """Return the kernel in a file; its modules lie in ``lib/modules`` beside it or of the same root."""
    release = read_release(vmlinuz)
    here = vmlinuz.absolute().parent
    trees = [
        base / "lib/modules" / release for base in (here, here / "usr", here.parent, here.parent / "usr")
    ]
    modules = next((tree for tree in trees if tree.is_dir()), None)
    if modules is None:
        places = ", ".join(map(str, trees))
        raise UsageError(f"no modules of {release} found", subject=str(vmlinuz), hint=f"looked at {places}")
    return Kernel(
        release, vmlinuz.absolute(), modules, first_file(here / f"config-{release}", modules / "config")
    )


def read_release(vmlinuz: Path) -> str:
    """Return the release (``uname -r``) that the header of a bzImage tells.

    :raises UsageError: where the file cannot be read or is something else
    """
    try:
        with vmlinuz.open("rb") as file:
            head = file.read(0x10000)
    except OSError as e:
        raise UsageError(e.strerror or str(e), subject=str(vmlinuz)) from e
    if head[MAGIC_OFFSET : MAGIC_OFFSET + 4] != MAGIC:
        raise UsageError("not a Linux kernel for x86 (no bzImage header)", subject=str(vmlinuz))
    start = VERSION_BASE + int.from_bytes(head[VERSION_OFFSET : VERSION_OFFSET + 2], "little")
    text = head[start : start + LONGEST_RELEASE].split(b"\0")[0].decode(errors="replace")
    if start == VERSION_BASE or not text:
        raise UsageError("its header tells no version", subject=str(vmlinuz))
    return text.split()[0]


def first_file(*paths: Path) -> Path | None:
    """Return the first of ``paths`` that is a file."""
    return next((path for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class Shelf:
    """The kernels that Debian has."""

    cache: Cache
    archive: Archive

    @cached_property
    def images(self) -> list[Published]:
        """The packages of all kernels, debugging and unsigned variants left out."""
        pattern = re.compile(rf"{PREFIX}\d\S*-amd64$")
        return self.archive.published(filter(pattern.match, sorted(self.archive.names(PREFIX))))

    def choose(self, spec: str) -> Published:
        """Return the package for a suite, a version or the beginning of one.

        :raises UsageError: where there is none
        """
        if spec in self.archive.suites:
            return self._of_suite(spec)
        found = [image for image in self.images if matches(spec, image)]
        if not found:
            raise UsageError("no such kernel", subject=spec, hint=self._choices())
        return max(found, key=newest_first)

    def fetch(self, image: Published) -> Kernel:
        """Return a kernel unpacked in the cache."""
        release = image.package.removeprefix(PREFIX)
        packages = {image.package: image.version}
        # Since 7.x the image package is empty: vmlinuz and modules are in packages it depends on.
        for name, version in self.archive.depends(image.package, image.version):
            if version is not None and name.endswith(f"-{release}"):
                packages[name] = version
        tree = self.cache.entry(
            "kernels",
            f"{release}-{digest(*sorted(f'{k}={v}' for k, v in packages.items()))}",
            lambda target: self.archive.unpack(packages, target),
        )
        return unpacked(tree, release)

    def _of_suite(self, suite: str) -> Published:
        """Return what the metapackage of a suite depends on, or the newest of a suite without one."""
        for meta in self.archive.published([METAPACKAGE]):
            if meta.suite == suite:
                for name, _ in self.archive.depends(METAPACKAGE, meta.version):
                    found = [i for i in self.images if i.package == name and i.suite == suite]
                    if found:
                        return found[0]
        rest = [i for i in self.images if i.suite == suite and i.package.endswith(FLAVOUR)]
        if not rest:
            raise UsageError("this suite has no kernel", subject=suite, hint=self._choices())
        return max(rest, key=newest_first)

    def _choices(self) -> str:
        cloud = [image for image in self.images if image.package.endswith(FLAVOUR)]
        named = sorted({(newest_first(i), i.package, i.suite) for i in cloud})
        known = ", ".join(f"{package.removeprefix(PREFIX)} ({suite})" for _, package, suite in named)
        return f"there are: {', '.join(self.archive.suites)}; {known}"


def matches(spec: str, image: Published) -> bool:
    """Tell whether ``spec`` is the release of a kernel, or the beginning of a cloud kernel's version.

    6.12 is the beginning of 6.12.107, 6.12.10 is not.
    """
    release = image.package.removeprefix(PREFIX)
    if release == spec:
        return True
    if not image.package.endswith(FLAVOUR) or not spec[:1].isdigit() or not release.startswith(spec):
        return False
    return not (spec[-1].isdigit() and release[len(spec)].isdigit())


def newest_first(image: Published) -> tuple[int, ...]:
    """Return a key that orders kernels by version."""
    return tuple(int(number) for number in re.findall(r"\d+", image.package))


def unpacked(tree: Path, release: str) -> Kernel:
    """Return the kernel in an unpacked package.

    :raises UpgradeError: where the package has another layout than those we know
    """
    modules = next(
        (p for p in (tree / d / release for d in ("usr/lib/modules", "lib/modules")) if p.is_dir()), None
    )
    if modules is None:
        raise UpgradeError("the packages of this kernel hold no modules", subject=release)
    vmlinuz = first_file(tree / f"boot/vmlinuz-{release}", modules / "vmlinuz")
    if vmlinuz is None:
        raise UpgradeError("the packages of this kernel hold no vmlinuz", subject=release)
    return Kernel(release, vmlinuz, modules, first_file(tree / f"boot/config-{release}", modules / "config"))
