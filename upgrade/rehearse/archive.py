# SPDX-License-Identifier: MIT
"""Debian's archive, read with lists and sources of our own.

The host's sources, lists and installed packages play no part, so any Debian host can fetch the packages of
any suite.
"""

import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import environ
from pathlib import Path

from upgrade.errors import UpgradeError
from upgrade.process import CommandFailed, run
from upgrade.rehearse.cache import Cache

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"
SECURITY_MIRROR = "http://deb.debian.org/debian-security"
LISTS_STAY_FRESH_SECONDS = 86_400
DOWNLOAD_TIMEOUT_SECONDS = 900


def sources(suites: Iterable[str]) -> list[str]:
    """Return the lines of a ``sources.list`` for ``suites``."""
    return [f"deb [signed-by={KEYRING}] {mirror(suite)} {suite} main" for suite in suites]


def mirror(suite: str) -> str:
    """Return where a suite is fetched from."""
    if suite.endswith("-security"):
        return environ.get("SEAMLESS_UPGRADE_SECURITY_MIRROR", SECURITY_MIRROR)
    return environ.get("SEAMLESS_UPGRADE_MIRROR", MIRROR)


@dataclass(frozen=True, slots=True)
class Published:
    """A version of a package, and a suite that has it."""

    package: str
    version: str
    suite: str


@dataclass(frozen=True, slots=True)
class Archive:
    """The packages of ``suites``; apt's files are under ``directory``."""

    directory: Path
    suites: tuple[str, ...]

    @classmethod
    def open(cls, cache: Cache, suites: tuple[str, ...]) -> "Archive":
        """Return the archive with lists that are younger than a day, or as young as the network allows."""
        archive = cls(cache.directory("apt"), suites)
        with cache.lock("apt"):
            archive._prepare()
            if not archive._fresh():
                archive.update()
        return archive

    def update(self) -> None:
        """Fetch the lists anew; old lists do where there is no network."""
        try:
            self._apt("apt-get", "-q", "update", "--error-on=any", timeout=DOWNLOAD_TIMEOUT_SECONDS)
        except CommandFailed as e:
            if not self._stamp.exists():
                raise UpgradeError(
                    "the package lists of Debian cannot be fetched", subject=MIRROR, hint=e.message
                ) from e
        else:
            self._stamp.write_text("\n".join(sources(self.suites)))

    def names(self, prefix: str) -> list[str]:
        """Return the names of all packages that begin with ``prefix``."""
        return self._apt("apt-cache", "pkgnames", prefix).split()

    def published(self, packages: Iterable[str]) -> list[Published]:
        """Return which versions of ``packages`` which suites have."""
        return [
            Published(package, version, match[1])
            for line in self._apt("apt-cache", "madison", *packages).splitlines()
            for package, version, where in [[part.strip() for part in line.split("|")]]
            if (match := re.search(r"(\S+)/main \S+ Packages$", where))
        ]

    def depends(self, package: str, version: str) -> list[tuple[str, str | None]]:
        """Return what a package depends on: names (the first alternative) with the exact version, if any."""
        shown = self._apt("apt-cache", "show", "--no-all-versions", f"{package}={version}")
        found = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        return [parse_dependency(item) for item in found[1].split(",")] if found else []

    def unpack(self, packages: Mapping[str, str], target: Path) -> None:
        """Download ``packages`` (names and versions) and unpack their files under ``target``."""
        downloads = target.with_name(target.name + ".debs")
        shutil.rmtree(downloads, ignore_errors=True)
        downloads.mkdir(parents=True)
        wanted = [f"{name}={version}" for name, version in packages.items()]
        self._apt("apt-get", "-q", "download", *wanted, cwd=downloads, timeout=DOWNLOAD_TIMEOUT_SECONDS)
        for deb in sorted(downloads.glob("*.deb")):
            run(["dpkg-deb", "-x", deb, target])
        shutil.rmtree(downloads)

    @property
    def _stamp(self) -> Path:
        return self.directory / "fetched"

    def _fresh(self) -> bool:
        if not self._stamp.exists() or self._stamp.read_text() != "\n".join(sources(self.suites)):
            return False
        return time.time() - self._stamp.stat().st_mtime < LISTS_STAY_FRESH_SECONDS

    def _prepare(self) -> None:
        for name in ("lists/partial", "archives/partial"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        # apt parses everything anew when one of these files is younger than what it remembers.
        write_changed(self.directory / "sources.list", "\n".join(sources(self.suites)) + "\n")
        write_changed(self.directory / "status", "")

    def _apt(self, program: str, *args: str, cwd: Path | None = None, timeout: float = 60) -> str:
        options = {
            "APT::Sandbox::User": "root",  # _apt cannot write to a user's cache directory
            "Dir::Cache": self.directory,
            # Images made for containers switch these off, and every call would then parse all lists again.
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Dir::Etc::sourcelist": self.directory / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": self.directory / "lists",
            "Dir::State::status": self.directory / "status",
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return run([program, *flags, *args], cwd=cwd, timeout=timeout).stdout


def write_changed(path: Path, text: str) -> None:
    """Write a file, unless that is what it holds."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def parse_dependency(item: str) -> tuple[str, str | None]:
    """Return the name and the exact version of one dependency, such as ``linux-base (= 1) | other``."""
    match = re.match(r"\s*(?P<name>[^\s(|:]+)[^(|]*(\(= (?P<version>[^)]+)\))?", item)
    if match is None:
        raise UpgradeError("not a dependency of Debian's format", subject=item)
    return match["name"], match["version"]
