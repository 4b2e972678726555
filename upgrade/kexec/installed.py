# SPDX-License-Identifier: MIT
"""The kernels that are installed: found by version, or the newest one that is not running."""

import re
from collections.abc import Iterator
from pathlib import Path

from upgrade.errors import Refusal, UsageError
from upgrade.host import Host

PREFIX = "vmlinuz-"


def find(host: Host, given: str | None) -> Path:
    """Return the kernel image that is meant.

    :param given: a file or a version; None for the newest installed one that is not running
    :raises UsageError: if there is no such file or version
    :raises Refusal: if no other kernel is installed
    """
    found = dict(installed(host))
    if given is None:
        others = [release for release in found if release != host.release()]
        if not others:
            raise Refusal(
                "no other kernel is installed",
                subject=f"running kernel {host.release()}",
                hint="install one, or name an image: --kernel VMLINUZ",
            )
        return found[max(others, key=order)]
    path = Path(given).absolute()
    if path.is_file():
        return path
    if given in found:
        return found[given]
    known = ", ".join(sorted(found, key=order)) or "none"
    what = "no such file" if "/" in given else "neither a file nor an installed version"
    raise UsageError(what, subject=given, hint=f"give --kernel a file or one of: {known}")


def installed(host: Host) -> Iterator[tuple[str, Path]]:
    """Yield release and image of each kernel below ``/usr/lib/modules`` and ``/boot`` (which wins)."""
    for release in host.list("/usr/lib/modules"):
        image = host.path(f"/usr/lib/modules/{release}/vmlinuz")
        if image.is_file():
            yield release, image
    for name in host.list("/boot"):
        if name.startswith(PREFIX) and host.path(f"/boot/{name}").is_file():
            yield name.removeprefix(PREFIX), host.path(f"/boot/{name}")


def order(release: str) -> list[tuple[int, int, str]]:
    """Return what releases are sorted by: numbers as numbers, a release candidate (``-rc1``) before its release."""
    key = []
    for number, text in re.findall(r"(\d+)|([^\d.+_-]+)", release):
        key.append((2, int(number), "") if number else (0 if text in ("rc", "~rc") else 1, 0, text))
    # the end of a release comes after "rc" and before everything else
    return [*key, (1, 0, "")]
