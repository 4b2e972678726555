# SPDX-License-Identifier: MIT
"""Boot loaders: what this host boots with, and how the kernel's command line is set there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from upgrade.errors import Refusal
from upgrade.host import Host
from upgrade.prepare.grub import Grub
from upgrade.prepare.kernelinstall import KernelInstall

# https://systemd.io/BOOT_LOADER_INTERFACE: who started this kernel, in UTF-16 behind four bytes of attributes
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


class Loader(Protocol):
    """A way to give the kernel arguments at every boot."""

    @property
    def name(self) -> str:
        """Return what the record calls it."""
        ...

    @property
    def file(self) -> Path:
        """The file that holds our arguments."""
        ...

    def commands(self) -> list[list[str]]:
        """Return what has to be called so that the file counts.

        :raises Refusal: if this loader's tools cannot be used for that
        """
        ...

    def command_line(self) -> str:
        """Return the command line that the next boot gets; empty if that is not known."""
        ...

    def is_set(self, arguments: Sequence[str]) -> bool:
        """Tell whether the next boot gets these arguments, because of our file."""
        ...

    def set(self, arguments: Sequence[str], old: Sequence[str]) -> None:
        """Have the kernel get these arguments, and no longer the old ones. If that fails, nothing has changed."""
        ...

    def unset(self, old: Sequence[str], *, created: bool) -> None:
        """Take arguments back. ``created``: the file was not there before. If that fails, nothing has changed."""
        ...


def named(host: Host, name: str) -> Loader:
    """Return a boot loader by its name."""
    return Grub(host) if name == Grub.name else KernelInstall(host)


def find(host: Host) -> Loader:
    """Return the boot loader of this host.

    :raises Refusal: if it is not known
    """
    grub, systemd_boot = Grub(host), KernelInstall(host)
    started_by = loader_info(host)
    if started_by.startswith("systemd-boot") or (not grub.is_there() and systemd_boot.is_there()):
        return systemd_boot
    both = grub.is_there() and systemd_boot.is_there()
    if grub.is_there() and (not both or started_by.startswith("GRUB") or _booted_by_grub(host)):
        return grub
    if both:
        raise Refusal(
            "GRUB and systemd-boot are both here, and nothing tells which of them booted this kernel",
            subject="boot loader",
        )
    started = f" ({started_by} booted this kernel)" if started_by else ""
    raise Refusal(
        f"is neither GRUB nor systemd-boot{started}: no /boot/grub/grub.cfg, no loader/entries",
        subject="boot loader",
    )


def loader_info(host: Host) -> str:
    """Return what the boot loader calls itself; empty if it does not say, or without EFI."""
    try:
        data = host.path(LOADER_INFO).read_bytes()
    except OSError:
        return ""
    return data[4:].decode("utf-16-le", errors="replace").rstrip("\0")


def _booted_by_grub(host: Host) -> bool:
    """GRUB puts the image's path first; systemd-boot does not."""
    return host.command_line().startswith("BOOT_IMAGE=")
