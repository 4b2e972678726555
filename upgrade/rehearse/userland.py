# SPDX-License-Identifier: MIT
"""What a guest consists of before any kernel is added: a tar file of Debian trixie."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from upgrade.process import run
from upgrade.rehearse.archive import sources
from upgrade.rehearse.cache import Cache, digest

SUITES = ("trixie", "trixie-updates", "trixie-security")
BUILD_TIMEOUT_SECONDS = 1800

# What the product and its installation need, what the initial ram disk is made with, and what people look
# for in a machine that does not do what it should.
PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "initramfs-tools", "zstd", "lz4", "lzop",
    "busybox", "linux-base", "criu", "python3", "python3-pycriu", "python3-psutil", "python3-pyroute2",
    "python3-tenacity", "python3-pyelftools", "python3-jinja2", "python3-xxhash", "python3-protobuf",
    "python3-numpy",
    "runc", "kexec-tools", "ndctl", "daxctl", "erofs-utils", "nftables", "conntrack", "qemu-guest-agent",
    "redis-server", "redis-tools", "e2fsprogs", "procps", "util-linux", "strace",
)  # fmt: skip
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the contents of a userland."""

    packages: tuple[str, ...]

    @classmethod
    def of(cls, extra: Iterable[str] = ()) -> "Recipe":
        """Return the recipe with the packages every guest has and ``extra`` ones."""
        return cls(tuple(sorted({*PACKAGES, *extra})))

    @property
    def key(self) -> str:
        """The name of the result in the cache."""
        return digest(json.dumps([self.packages, SUITES, LEFT_OUT, list(sources(SUITES))]))

    def command(self, target: Path) -> list[str]:
        """Return the command that makes ``target``."""
        return [
            "mmdebstrap",
            "--quiet",
            "--variant=apt",
            f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
            f"--include={','.join(self.packages)}",
            '--aptopt=Apt::Install-Recommends "0"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            # Java's alternatives are links to manual pages, in a directory that nobody makes without any
            '--essential-hook=mkdir -p "$1/usr/share/man/man1"',
            "--format=tar",
            SUITES[0],
            str(target),
            *sources(SUITES),
        ]


def build(cache: Cache, recipe: Recipe) -> Path:
    """Return the tar file of a userland; making one takes about a minute."""

    def make(target: Path) -> None:
        run(recipe.command(target), timeout=BUILD_TIMEOUT_SECONDS)

    return cache.entry("userlands", f"{recipe.key}.tar", make)
