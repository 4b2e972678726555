# SPDX-License-Identifier: MIT
"""Loading the kernel for the jump: ``kexec_file_load(2)``, and ``kexec_load`` where that is not to be had."""

import errno
import os
import tempfile
from pathlib import Path

from upgrade import linux
from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.process import run

_REASONS = {
    errno.EPERM: (
        "the kernel does not allow kexec (kexec_load_disabled, or lockdown wants a signed image)",
        "see /proc/sys/kernel/kexec_load_disabled and /sys/kernel/security/lockdown",
    ),
    errno.EKEYREJECTED: ("its signature is not trusted", "use a kernel signed by a key of this machine"),
    errno.ENOPKG: ("its signature uses an unknown algorithm", "use the distribution's own kernel"),
    errno.ENOEXEC: ("the kernel does not take it for a kernel image", "reinstall the kernel's package"),
    errno.EADDRNOTAVAIL: ("there is no free memory to load it into", "free memory below 4 GiB"),
    errno.EBUSY: ("another kexec is being loaded just now", "wait, or end the other kexec command"),
}


def load(kernel: Path, initrd: bytes, command_line: str) -> str:
    """Load a kernel and return the system call that took it.

    :raises Refusal: if neither call takes it; nothing is loaded then
    """
    try:
        _file_load(kernel, initrd, command_line)
        return "kexec_file_load"
    except OSError as e:
        first = e
    try:
        _command_load(kernel, initrd, command_line)
        return "kexec_load"
    except UpgradeError as second:
        reason, hint = _REASONS.get(first.errno or 0, (first.strerror or str(first), "see the kernel's log"))
        raise Refusal(
            f"cannot be loaded: {reason}; kexec_load: {second.message}", subject=str(kernel), hint=hint
        ) from first


def is_loaded(host: Host) -> bool:
    """Tell whether a kernel is loaded, ours or somebody else's."""
    return host.read_or("/sys/kernel/kexec_loaded", "0") == "1"


def _file_load(kernel: Path, initrd: bytes, command_line: str) -> None:
    with kernel.open("rb") as image, open(os.memfd_create("initrd"), "r+b") as archive:
        archive.write(initrd)
        archive.flush()
        linux.kexec_file_load(image.fileno(), archive.fileno(), command_line)


def _command_load(kernel: Path, initrd: bytes, command_line: str) -> None:
    with tempfile.NamedTemporaryFile(prefix="seamless-upgrade-initrd-") as archive:
        archive.write(initrd)
        archive.flush()
        run(
            [
                "kexec",
                "--load",
                "--kexec-syscall",
                kernel,
                f"--initrd={archive.name}",
                f"--command-line={command_line}",
            ]
        )
