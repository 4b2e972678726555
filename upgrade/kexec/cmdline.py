# SPDX-License-Identifier: MIT
"""The new kernel's command line: the running one, and what this session needs on it."""

from upgrade.errors import Refusal, UsageError

SESSION = "seamless_upgrade.session"
RDINIT = "/seamless-upgrade-init"

# arch/x86/include/asm/setup.h
COMMAND_LINE_SIZE = 2048
# arch/x86/kernel/kexec-bzimage64.c: room for " elfcorehdr=" is wanted even where there is no crash kernel, and a NUL
MOST_BYTES = COMMAND_LINE_SIZE - 1 - 30 - 1

# Set by the boot loader for the kernel that it loaded itself.
_OF_THE_LOADER = ("BOOT_IMAGE=", "initrd=")


def base(running: str) -> str:
    """Return the running command line without what belongs to its own boot only."""
    ours = (f"{SESSION}=", f"rdinit={RDINIT}")
    return " ".join(word for word in running.split() if not word.startswith((*_OF_THE_LOADER, *ours)))


def build(running: str, append: str, session: str) -> str:
    """Return the new kernel's command line.

    :raises UsageError: if ``append`` sets what the session itself has to set
    :raises Refusal: if the result is longer than the kernel takes
    """
    for word in append.split():
        if word == "--" or word.startswith(("rdinit=", f"{SESSION}=")):
            raise UsageError(
                "is set by seamless-upgrade itself", subject=word, hint="leave it out of --append"
            )
    # What stands behind "--" goes to init and not to the kernel.
    words = base(running).split()
    end = words.index("--") if "--" in words else len(words)
    words[end:end] = [*append.split(), f"{SESSION}={session}", f"rdinit={RDINIT}"]
    line = " ".join(words)
    if len(line.encode()) > MOST_BYTES:
        raise Refusal(
            f"has {len(line.encode())} bytes, the kernel takes {MOST_BYTES}",
            subject="new command line",
            hint="shorten --append or the running kernel's command line",
        )
    return line


def session_of(command_line: str) -> str | None:
    """Return the session that a kernel was entered for; None for an ordinary boot."""
    for word in reversed(command_line.split()):
        if word.startswith(f"{SESSION}="):
            return word.removeprefix(f"{SESSION}=")
    return None


def old_rdinit(running: str) -> str:
    """Return what the initramfs starts without us."""
    for word in reversed(base(running).split()):
        if word.startswith("rdinit="):
            return word.removeprefix("rdinit=")
    return "/init"
