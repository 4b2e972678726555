# SPDX-License-Identifier: MIT
"""Is a newer CRIU, or a newer engine, waiting to be installed? As far as apt's lists on this host say; no network."""

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

from upgrade.check.model import Finding, passed, skipped, warned
from upgrade.check.situation import Situation
from upgrade.process import run

STATUS = "/var/lib/dpkg/status"
LISTS = "/var/lib/apt/lists"
PACKAGES = (
    *("criu", "libcriu2", "python3-pycriu", "kexec-tools"),
    *("runc", "crun", "podman", "conmon", "containerd", "containerd.io", "docker.io", "docker-ce"),
)
_STATUS = "Status: install ok installed"
# Of a repository that apt takes nothing from unless told to, as trixie-backports (apt_preferences(5)); of _Release,
# which may be long, this is in the head.
_NOT_AUTOMATIC = re.compile(r"^NotAutomatic: yes$", re.MULTILINE)
_HEAD_BYTES = 4096


def updates(situation: Situation) -> Iterator[Finding]:
    """Compare the versions that are installed with those that apt knows."""
    host = situation.host
    if not host.exists(STATUS):
        yield skipped(
            "updates",
            "dpkg does not manage this host",
            source=STATUS,
            reason="others than dpkg and apt cannot be asked without a network",
            remedy="ask it yourself, as with dnf check-update criu runc podman",
        )
        return
    installed = dict(_stanzas(host.read(STATUS)))
    lists = [path for path in sorted(host.path(LISTS).glob("*_Packages")) if _is_automatic(path)]
    if not lists:
        yield skipped(
            "updates",
            "apt has no lists of packages, or compressed ones only",
            source=LISTS,
            reason="it is not known whether there are newer versions",
            remedy="apt-get update",
        )
        return
    newer = list(_newer(installed, lists))
    for name, version, path in newer:
        yield warned(
            name,
            f"{version} can be installed, {installed[name]} is",
            source=os.path.join(LISTS, path.name),
            reason="the containers are dumped and restored by the version that is installed, without what the newer "
            "one mends",
            remedy=f"apt-get install --only-upgrade {name}",
        )
    if not newer:
        yield passed("updates", f"none for {', '.join(installed) or 'CRIU or an engine'}", LISTS)


def _stanzas(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and version of each of our packages that is installed."""
    for name in PACKAGES:
        found = re.search(rf"^Package: {re.escape(name)}\n((?:[^\n]+\n)+)", text + "\n", re.MULTILINE)
        if found and _STATUS in found[1].splitlines():
            yield name, _version(found[1])


def _newer(installed: dict[str, str], lists: list[Path]) -> Iterator[tuple[str, str, Path]]:
    """Yield for each package the newest version, if that is not the one that is installed."""
    for name, version in installed.items():
        newest, where = version, None
        for path in lists:
            for other in _listed(path, name):
                if other != newest and _is_greater(other, newest):
                    newest, where = other, path
        if where is not None:
            yield name, newest, where


def _listed(path: Path, name: str) -> Iterator[str]:
    """Yield the versions of a package in a list, which may have some 50 MB."""
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        head = f"Package: {name}\n".encode()
        at = 0 if data[: len(head)] == head else data.find(b"\n" + head)
        while at >= 0:
            end = data.find(b"\n\n", at)
            yield _version(data[at : end if end > 0 else len(data)].decode(errors="replace"))
            at = data.find(b"\n" + head, at + 1)


def _version(stanza: str) -> str:
    found = re.search(r"^Version: (\S+)$", stanza, re.MULTILINE)
    return found[1] if found else ""


def _is_greater(one: str, other: str) -> bool:
    return run(["dpkg", "--compare-versions", one, "gt", other], check=False).returncode == 0


def _is_automatic(path: Path) -> bool:
    """Tell whether apt installs from a list by itself."""
    base = re.sub(r"_[^_]+_binary-[^_]+_Packages$", "", path.name)
    for name in (f"{base}_InRelease", f"{base}_Release"):
        try:
            with path.with_name(name).open("rb") as file:
                return not _NOT_AUTOMATIC.search(file.read(_HEAD_BYTES).decode(errors="replace"))
        except OSError:
            continue
    return True
