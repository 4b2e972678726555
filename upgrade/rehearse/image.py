# SPDX-License-Identifier: MIT
"""The disk a guest boots from: a userland with the kernels of a rehearsal."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from upgrade.process import run
from upgrade.rehearse import userland
from upgrade.rehearse.cache import Cache, digest
from upgrade.rehearse.guest import FILES, ROOT_LABEL
from upgrade.rehearse.kernels import Kernel

SCRIPT = Path(__file__).with_name("image.sh")
SIZE = "12G"  # sparse: takes what is written
BUILD_TIMEOUT_SECONDS = 1200


@dataclass(frozen=True, slots=True)
class Image:
    """A disk image and the initial ram disks that belong to it. Runs put an overlay on it."""

    directory: Path
    kernels: tuple[Kernel, ...]

    @property
    def disk(self) -> Path:
        """The ext4 file system of the root, a raw image."""
        return self.directory / "root.ext4"

    def initrd(self, release: str) -> Path:
        """Return the initial ram disk of one of the kernels."""
        return self.directory / f"initrd.img-{release}"


def build(cache: Cache, kernels: Iterable[Kernel], packages: Iterable[str] = ()) -> Image:
    """Return the image with ``kernels`` and, beside the usual, ``packages``; made once, then cached."""
    recipe = userland.Recipe.of(packages)
    chosen = tuple({kernel.release: kernel for kernel in kernels}.values())

    def make(target: Path) -> None:
        base = userland.build(cache, recipe)
        target.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="image-", dir=target) as work:
            os.chmod(work, 0o755)
            assemble(base, chosen, Path(work), target)

    key = digest(recipe.key, *settings(), *sorted(map(identity, chosen)))
    return Image(cache.entry("images", key, make), chosen)


def settings() -> list[str]:
    """Return everything but packages and kernels that decides what is in an image."""
    return [SCRIPT.read_text(), SIZE, *(f"{path}={text}" for path, text in sorted(FILES.items()))]


def identity(kernel: Kernel) -> str:
    """Return what tells a kernel from another of the same release, such as a rebuilt one."""
    stat = kernel.vmlinuz.stat()
    return f"{kernel.release} {kernel.vmlinuz} {stat.st_size} {stat.st_mtime_ns}"


def assemble(base: Path, kernels: Sequence[Kernel], work: Path, target: Path) -> None:
    """Make the image in ``target``."""
    files = work / "files"
    for path, text in FILES.items():
        place = files / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    script: list[str | Path] = ["sh", SCRIPT, base, files, target, SIZE, ROOT_LABEL]
    run([*as_root(), *script, *(shelve(kernel, work) for kernel in kernels)], timeout=BUILD_TIMEOUT_SECONDS)


def as_root() -> list[str]:
    """Return what to put before a command that needs root's powers over files and mounts."""
    if os.geteuid() == 0:
        return ["unshare", "--mount", "--propagation", "private"]
    return ["unshare", "--mount", "--map-auto", "--map-root-user", "--setuid", "0", "--setgid", "0"]


def shelve(kernel: Kernel, work: Path) -> Path:
    """Return a directory of links to the parts of a kernel, as ``image.sh`` wants it."""
    place = work / kernel.release
    place.mkdir()
    (place / "vmlinuz").symlink_to(kernel.vmlinuz)
    (place / "modules").symlink_to(kernel.modules)
    if kernel.config:
        (place / "config").symlink_to(kernel.config)
    return place
