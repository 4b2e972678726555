# SPDX-License-Identifier: MIT
"""The modules of a kernel: what is installed, what is built in, and which of them drives a device.

The files are those of depmod(8) and of the kernel's build (Documentation/kbuild/kbuild.rst).
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from upgrade.host import Host

DIRECTORIES = ("/usr/lib/modules", "/lib/modules")
_COMPRESSIONS = (".gz", ".xz", ".zst")


def name_of(path: str) -> str:
    """Return the name of the module in a file: dashes are underscores (modprobe.d(5))."""
    name = path.rpartition("/")[2]
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return name.removesuffix(".ko").replace("-", "_")


def is_module(path: str) -> bool:
    """Tell whether a file is called like a module."""
    return path.endswith(tuple(f".ko{each}" for each in ("", *_COMPRESSIONS)))


@dataclass(frozen=True)
class Modules:
    """The modules of one kernel."""

    directory: Path
    files: Mapping[str, str] = field(repr=False)
    """By name: the file, from the directory."""
    needs: Mapping[str, str] = field(repr=False)
    """By name: the files of the modules that it needs, indirect ones, too; as they are listed, for few are asked."""
    builtin: frozenset[str] = field(repr=False)

    def has(self, name: str) -> bool:
        """Tell whether a module is built in, or installed and really there."""
        return self.is_builtin(name) or self.is_installed(name)

    def is_builtin(self, name: str) -> bool:
        """Tell whether a module is part of the kernel."""
        return _plain(name) in self.builtin

    def is_installed(self, name: str) -> bool:
        """Tell whether a module is a file that is there."""
        file = self.files.get(_plain(name))
        return file is not None and (self.directory / file).exists()

    def with_needs(self, name: str) -> list[str]:
        """Return a module and those that it needs, as far as they are files."""
        return [_plain(name), *map(name_of, self.needs.get(_plain(name), "").split())]

    def for_alias(self, alias: str) -> list[str]:
        """Return the modules that answer to a name like ``fs-ext4`` or the modalias of a device."""
        wanted = alias.replace("-", "_")
        return [name for match, name in self._aliases if match(wanted)]

    def drives(self, modaliases: Sequence[str]) -> bool:
        """Tell whether one of the modules drives a device that has these modaliases."""
        return any(self.has(name) for alias in modaliases for name in self.for_alias(alias))

    @cached_property
    def _aliases(self) -> list["tuple[_Match, str]"]:
        """Everything that modules answer to; some thousand patterns, compiled only as they are tried."""
        return [(_Match(pattern.replace("-", "_")), name) for pattern, name in self._alias_lines()]

    def _alias_lines(self) -> Iterator[tuple[str, str]]:
        for line in _text(self.directory / "modules.alias").splitlines():
            word, _, rest = line.partition(" ")
            pattern, _, name = rest.rpartition(" ")
            if word == "alias":
                yield pattern, _plain(name)
        for entry in _text(self.directory / "modules.builtin.modinfo").split("\0"):
            key, _, value = entry.partition("=")
            name, _, what = key.rpartition(".")
            if what == "alias":
                yield value, _plain(name)


class _Match:
    """One pattern of an alias (fnmatch(3))."""

    __slots__ = ("_plain", "_prefix", "_regex", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._prefix = re.split(r"[*?\[]", text, maxsplit=1)[0]
        self._plain = self._prefix == text
        self._regex: re.Pattern[str] | None = None

    def __call__(self, alias: str) -> bool:
        if self._plain or not alias.startswith(self._prefix):
            return self._plain and alias == self._text
        if self._regex is None:
            self._regex = re.compile(fnmatch.translate(self._text))
        return self._regex.match(alias) is not None


def load(host: Host, release: str) -> Modules | None:
    """Return the modules of a kernel; None if it has no directory, or depmod never saw it."""
    directory = _directory(host, release)
    return _load(directory) if directory else None


def builtin(host: Host, release: str) -> frozenset[str]:
    """Return what is built into a kernel; nothing if its modules are not installed."""
    directory = _directory(host, release)
    return _builtin(directory) if directory else frozenset()


def _directory(host: Host, release: str) -> Path | None:
    for base in DIRECTORIES:
        directory = host.path(f"{base}/{release}")
        if (directory / "modules.dep").is_file():
            return directory
    return None


def _load(directory: Path) -> Modules:
    files, needs = {}, {}
    for line in _text(directory / "modules.dep").splitlines():
        file, _, others = line.partition(":")
        name = name_of(file)
        files[name], needs[name] = file, others
    return Modules(directory, files, needs, _builtin(directory))


def _builtin(directory: Path) -> frozenset[str]:
    return frozenset(map(name_of, _text(directory / "modules.builtin").split()))


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""
