# SPDX-License-Identifier: MIT
"""GRUB: a drop-in for ``/etc/default/grub.d``, and the ``grub.cfg`` that is made of it.

An argument passes through two parsers. ``grub-mkconfig`` is a shell script that reads the drop-in and writes
``GRUB_CMDLINE_LINUX`` unquoted into ``grub.cfg``. At boot GRUB parses that: ``$`` begins a variable, and blanks,
``{ } | & ; < >``, quotes and backslashes are special (GRUB manual, "Quoting"). ``memmap=SIZE!START`` has nothing of
this: ``!`` is special to interactive shells only, and to GRUB as a word of its own. What came out is looked at all the
same before it counts.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upgrade import files, process
from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.process import run

DROP_IN = "/etc/default/grub.d/seamless-upgrade.cfg"
CONFIGS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
MAKERS = ("grub-mkconfig", "grub2-mkconfig")
TIMEOUT_S = 600.0  # os-prober looks at every disk
# What /etc/grub.d/10_linux wrote: this host's kernels. Other systems' are not ours.
_OURS = re.compile(r"^### BEGIN \S*/10_linux ###$(.*?)^### END \S*/10_linux ###$", re.MULTILINE | re.DOTALL)
_LINUX = re.compile(r"^\s*linux(?:16|efi)?\s+(.*)$", re.MULTILINE)
_SAFE = re.compile(r"[A-Za-z0-9_.,:=!/@+-]+")


@dataclass(frozen=True)
class Grub:
    """GRUB of this host."""

    host: Host
    name: str = "grub"

    @property
    def file(self) -> Path:
        """The drop-in."""
        return self.host.path(DROP_IN)

    def is_there(self) -> bool:
        """Tell whether there is a configuration that GRUB would read."""
        return self._config() is not None

    def commands(self) -> list[list[str]]:
        """Return how grub.cfg is made.

        :raises Refusal: if this is no grub-mkconfig that reads drop-ins
        """
        maker = next((name for name in MAKERS if shutil.which(name, path=process.PATH)), None)
        if maker is None:
            raise Refusal(
                f"{self._config()} is there, but no grub-mkconfig",
                subject="GRUB",
                hint="install it (Debian: apt-get install grub2-common), or add the arguments by hand",
            )
        if "default/grub.d" not in Path(str(shutil.which(maker, path=process.PATH))).read_text(
            errors="replace"
        ):
            raise Refusal(
                f"this {maker} reads no drop-ins in /etc/default/grub.d",
                subject="GRUB",
                hint="add the arguments by hand: grubby --update-kernel=ALL --args=..., or GRUB_CMDLINE_LINUX in "
                '/etc/default/grub; prepare --dry-run --json has them under "arguments"',
            )
        if shutil.which("update-grub", path=process.PATH):
            return [["update-grub"]]
        return [[maker, "-o", str(self._config())]]

    def command_line(self) -> str:
        """Return the arguments in the first entry of grub.cfg."""
        lines = self._lines()
        return " ".join(lines[0]) if lines else ""

    def is_set(self, arguments: Sequence[str]) -> bool:
        """Tell whether the drop-in and every entry have the arguments."""
        return files.read(self.file) == drop_in(arguments) and self._all_have(arguments)

    def set(self, arguments: Sequence[str], old: Sequence[str]) -> None:
        """Write the drop-in and have grub.cfg made of it; both are as before if that fails."""
        self._replace(drop_in(arguments), arguments, [word for word in old if word not in arguments])

    def unset(self, old: Sequence[str], *, created: bool) -> None:
        """Remove the drop-in and have grub.cfg made without it; both are as before if that fails."""
        self._replace(None, (), old)

    def _replace(self, text: str | None, wanted: Sequence[str], unwanted: Sequence[str]) -> None:
        config = self._config()
        if config is None:
            raise Refusal("is not there any more", subject=CONFIGS[0], hint="have it made: update-grub")
        before = files.read(config)
        commands = self.commands()
        try:
            with files.replaced(self.file, text):
                for command in commands:
                    run(command, timeout=TIMEOUT_S)
                self._verify(wanted, unwanted)
        except BaseException:
            if before is not None and files.read(config) != before:
                files.write(config, before, config.stat().st_mode & 0o7777)
            raise

    def _verify(self, wanted: Sequence[str], unwanted: Sequence[str]) -> None:
        lines = self._lines()
        if not self._all_have(wanted) or any(word in line for line in lines for word in unwanted):
            shown = " ".join(lines[0]) if lines else "no entry for a kernel"
            what = f"with {' '.join(wanted)}" if wanted else f"without {' '.join(unwanted)}"
            raise UpgradeError(
                f"has not become one {what}: {shown}",
                subject=str(self._config()),
                hint="a file in /etc/default/grub.d that comes later, or /etc/grub.d, may set the command line itself",
            )

    def _all_have(self, arguments: Sequence[str]) -> bool:
        lines = self._lines()
        return bool(lines) and all(word in line for line in lines for word in arguments)

    def _lines(self) -> list[list[str]]:
        """Return the arguments of every entry of this host's kernels, as the kernel gets them."""
        config = self._config()
        text = (files.read(config) or "") if config else ""
        ours = "".join(_OURS.findall(text)) or text
        return [words(line)[1:] for line in _LINUX.findall(ours)]

    def _config(self) -> Path | None:
        return next((self.host.path(path) for path in CONFIGS if self.host.exists(path)), None)


def drop_in(arguments: Sequence[str]) -> str:
    """Return the drop-in that adds arguments to whatever is set before it.

    :raises ValueError: if one would have to be quoted for GRUB
    """
    for word in arguments:
        if not _SAFE.fullmatch(word):
            raise ValueError(f"has to be quoted for GRUB: {word!r}")
    return (
        "# Written by seamless-upgrade prepare, and removed by seamless-upgrade unprepare.\n"
        f"GRUB_CMDLINE_LINUX=\"${{GRUB_CMDLINE_LINUX:+$GRUB_CMDLINE_LINUX }}\"'{' '.join(arguments)}'\n"
    )


def words(line: str) -> list[str]:
    """Return the words of a command as GRUB's parser makes them; variables stay as they are written."""
    found: list[str] = []
    word: str | None = None
    quote = ""
    letters = iter(line)
    for letter in letters:
        if quote:
            if letter == quote:
                quote = ""
            elif letter == "\\" and quote == '"':
                following = next(letters, "")
                word = (word or "") + (following if following in '$"\\' else letter + following)
            else:
                word = (word or "") + letter
        elif letter in "'\"":
            quote, word = letter, word or ""
        elif letter == "\\":
            word = (word or "") + next(letters, "")
        elif letter in " \t":
            if word is not None:
                found.append(word)
            word = None
        elif letter in ";&|#" and (letter != "#" or word is None):
            break
        else:
            word = (word or "") + letter
    return [*found, word] if word is not None else found
