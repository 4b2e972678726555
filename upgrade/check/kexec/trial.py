# SPDX-License-Identifier: MIT
"""The proof: the new command line is made, and the kernel is really loaded, and forgotten again."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from upgrade import linux
from upgrade.check.kexec.allowed import UNLIMITED, is_disabled, load_limit
from upgrade.check.model import Finding, passed, skipped, warned
from upgrade.check.situation import Situation
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.kexec import cmdline, load

# As long as those of real sessions
SESSION = "20260101T000000Z-000000"
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def command_line(situation: Situation) -> Iterator[Finding]:
    """Make the new kernel's command line."""
    line = cmdline.build(situation.host.command_line(), situation.request.append, SESSION)
    yield passed("new command line", f"{len(line.encode())} of {cmdline.MOST_BYTES} bytes", "/proc/cmdline")


def file_load(situation: Situation) -> Iterator[Finding]:
    """Load the kernel as an upgrade would, and unload it in every case."""
    host, target = situation.host, situation.target
    if os.geteuid() != 0:
        raise UpgradeError("needs root", hint="run it with sudo", status=ExitStatus.NOT_PRIVILEGED)
    if reason := _hindrance(situation):
        yield skipped(str(target.path), "not tried", reason=reason)
        return
    line = cmdline.build(host.command_line(), situation.request.append, SESSION)
    initrd = target.initrd.read_bytes()
    with delayed(ENDING):
        try:
            began = time.monotonic()
            call = load.load(target.path, initrd, line)
            took = time.monotonic() - began
        finally:
            linux.kexec_unload()
    if call == "kexec_file_load":
        yield passed(str(target.path), f"{call} took it with its initrd in {took:.1f} s; unloaded again")
    else:
        yield warned(
            str(target.path),
            f"{call} took it, kexec_file_load did not",
            reason="the program kexec prepares the kernel's memory, which is tried less",
            remedy="kexec --load --kexec-file-syscall --debug says why",
        )


def _hindrance(situation: Situation) -> str:
    """Return why a load must not be tried; nothing if it may."""
    host = situation.host
    if load.is_loaded(host):
        return "a kernel is loaded already, and would be lost"
    if is_disabled(host):
        return "loading is switched off"
    if load_limit(host) != UNLIMITED:
        return "it would take loads that kexec_load_limit_reboot limits"
    return ""


@contextmanager
def delayed(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Let signals do what they do, but only afterwards. For the main thread, which runs Python's handlers."""
    came: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in came:
            signal.raise_signal(late)
