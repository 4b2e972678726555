# SPDX-License-Identifier: MIT
"""systemd-boot: the command line in ``/etc/kernel/cmdline``, from which kernel-install makes the entries.

Where that file is missing, kernel-install takes ``/usr/lib/kernel/cmdline``, else the running kernel's command line
(systemd, ``src/kernel-install/90-loaderentry.install.in``). To add to it, the file has to be made the same way.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from upgrade import files, process
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.kexec import cmdline
from upgrade.process import missing, run

FILE = "/etc/kernel/cmdline"
VENDOR = "/usr/lib/kernel/cmdline"
# Where the EFI or the extended boot partition is mounted, in bootctl's order, and Debian's /boot/efi
BOOTS = ("/efi", "/boot", "/boot/efi")
PROGRAM = "kernel-install"
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class KernelInstall:
    """systemd-boot of this host, with the entries that kernel-install writes."""

    host: Host
    name: str = "kernel-install"

    @property
    def file(self) -> Path:
        """The command line of all entries."""
        return self.host.path(FILE)

    def is_there(self) -> bool:
        """Tell whether systemd-boot is installed, or has entries."""
        return any(
            self.host.list(f"{boot}/loader/entries") or self.host.exists(f"{boot}/EFI/systemd")
            for boot in BOOTS
        )

    def commands(self) -> list[list[str]]:
        """Return the call of kernel-install for every installed kernel, the oldest first.

        Debian has the images in /boot: ``kernel-install add-all`` would not find them.

        :raises UpgradeError: if there is none
        """
        if shutil.which(PROGRAM, path=process.PATH) is None:
            raise missing(PROGRAM)
        found = []
        for release in self.host.list("/usr/lib/modules"):
            for image in (f"/usr/lib/modules/{release}/vmlinuz", f"/boot/vmlinuz-{release}"):
                if self.host.exists(image):
                    found.append([PROGRAM, "add", release, str(self.host.path(image))])
                    break
        if not found:
            raise UpgradeError(
                "no kernel is installed below /usr/lib/modules",
                subject=PROGRAM,
                hint="add the arguments to the boot loader's entries by hand",
            )
        return found

    def command_line(self) -> str:
        """Return what the entries get when they are made; empty if nothing is set."""
        text = files.read(self.file)
        if text is None:
            text = files.read(self.host.path(VENDOR))
        return " ".join((text or "").split())

    def is_set(self, arguments: Sequence[str]) -> bool:
        """Tell whether the file and the entries have the arguments."""
        return _has((files.read(self.file) or "").split(), arguments) and self._shown(arguments)

    def set(self, arguments: Sequence[str], old: Sequence[str]) -> None:
        """Write the file and have the entries made anew; all is as before if that fails."""
        kept = [word for word in self._base() if word not in (*old, *arguments)]
        self._replace(" ".join([*kept, *arguments]) + "\n", arguments, [w for w in old if w not in arguments])

    def unset(self, old: Sequence[str], *, created: bool) -> None:
        """Take the arguments out of the file, and have the entries made anew.

        It is removed only if it was created and says what kernel-install would take without it: as long as the
        running kernel has the arguments itself, these would come back otherwise.
        """
        text = files.read(self.file)
        if text is None:
            return
        kept = [word for word in text.split() if word not in old]
        self._replace(None if created and kept == self._default() else " ".join(kept) + "\n", (), old)

    def _replace(self, text: str | None, wanted: Sequence[str], unwanted: Sequence[str]) -> None:
        commands = self.commands()
        try:
            with files.replaced(self.file, text):
                for command in commands:
                    run(command, timeout=TIMEOUT_S)
                if not self._shown(wanted) or any(w in entry for entry in self._entries() for w in unwanted):
                    raise UpgradeError(
                        f"wrote no entries with {' '.join(wanted)}"
                        if wanted
                        else f"left entries with {' '.join(unwanted)}",
                        subject=PROGRAM,
                        hint="see /etc/kernel/install.d and /etc/kernel/install.conf",
                    )
        except BaseException:
            # The old file is back: have the entries made of it, as far as that goes.
            for command in commands:
                with suppress(UpgradeError):
                    run(command, timeout=TIMEOUT_S)
            raise

    def _shown(self, arguments: Sequence[str]) -> bool:
        """Tell whether an entry has the arguments. A unified kernel image has them inside: it is believed."""
        unified = any(self.host.list(f"{boot}/EFI/Linux") for boot in BOOTS)
        return unified or any(_has(words, arguments) for words in self._entries())

    def _entries(self) -> list[list[str]]:
        """Return the words of each entry of the boot loader (https://uapi-group.org/specifications/specs)."""
        return [
            text.split()
            for boot in BOOTS
            for name in self.host.list(f"{boot}/loader/entries")
            if (text := files.read(self.host.path(f"{boot}/loader/entries/{name}")))
        ]

    def _base(self) -> list[str]:
        text = files.read(self.file)
        return text.split() if text is not None else self._default()

    def _default(self) -> list[str]:
        """Return what kernel-install takes without the file."""
        text = files.read(self.host.path(VENDOR))
        if text is not None:
            return text.split()
        # It adds the machine's id itself where the entries are named by it.
        running = cmdline.base(self.host.command_line()).split()
        return [word for word in running if not word.startswith("systemd.machine_id=")]


def _has(words: Sequence[str], arguments: Sequence[str]) -> bool:
    return all(word in words for word in arguments)
