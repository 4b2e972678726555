# SPDX-License-Identifier: MIT
"""The configuration that a kernel was built with.

It is a file beside the image (``/boot/config-RELEASE``), one in the directory of its modules, or it is inside the
kernel (``CONFIG_IKCONFIG``, kernel/configs.c: gzip between two markers).
"""

import gzip
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from upgrade.host import Host

_BEGIN = b"IKCFG_ST\x1f\x8b"
_LINE = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)
_NOT_SET = re.compile(r"^# CONFIG_(\w+) is not set$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """The options of a kernel, without ``CONFIG_``."""

    source: str
    """Where it was read."""
    options: Mapping[str, str] = field(repr=False)
    """Those that are set."""
    refused: frozenset[str] = field(repr=False)
    """Those that could have been set: the kernel knows them, and what they depend on is there."""

    def get(self, option: str) -> str:
        """Return ``y``, ``m``, a number or a text without its quotes; empty where the option is not set."""
        return self.options.get(option, "")


def parse(text: str, source: str) -> KernelConfig:
    """Read a ``.config`` (Documentation/kbuild/kconfig.rst)."""
    found = {name: value.strip('"') for name, value in _LINE.findall(text)}
    return KernelConfig(source, found, frozenset(_NOT_SET.findall(text)))


def find(host: Host, release: str, image: Path) -> KernelConfig | None:
    """Return the configuration of a kernel from the files that its package installs; None if there is none.

    :param image: its image, which the file may lie beside
    """
    files = (
        image.parent / f"config-{release}",
        host.path(f"/boot/config-{release}"),
        host.path(f"/usr/lib/modules/{release}/config"),
        host.path(f"/lib/modules/{release}/config"),
    )
    for file in files:
        text = _read(file)
        if text:
            return parse(text, str(file))
    running = host.path("/proc/config.gz")
    if release == host.release() and running.is_file():
        return parse(gzip.decompress(running.read_bytes()).decode(errors="replace"), str(running))
    return None


def inside(kernel: bytes, source: str) -> KernelConfig | None:
    """Return the configuration inside an uncompressed kernel; None if it was built without.

    :param kernel: what :func:`upgrade.kexec.vmlinux.decompress` returns
    """
    at = kernel.find(_BEGIN)
    while at >= 0:
        with suppress(zlib.error):
            packed = zlib.decompressobj(wbits=31)
            text = packed.decompress(kernel[at + len(_BEGIN) - 2 :])
            if packed.eof:
                return parse(text.decode(errors="replace"), source)
        at = kernel.find(_BEGIN, at + 1)  # that was not the configuration, but something that looks for it
    return None


def _read(file: Path) -> str:
    try:
        text = file.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return text if "CONFIG_" in text else ""
