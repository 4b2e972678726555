# SPDX-License-Identifier: MIT
"""Devices that are open: CRIU knows memory devices, terminals and tun, and refuses all others.

criu/files.c, ``dump_chrdev``; criu/tty.c, ``get_tty_driver``. Block devices are always refused.
"""

import os
import stat
from collections.abc import Iterator

from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding, Status
from upgrade.check.processes import Descriptor, Process
from upgrade.check.situation import Situation

# Documentation/admin-guide/devices.txt
MEMORY, TTY, TTY_AUX, MISC, PTY_SLAVE, USB_SERIAL, SERIAL = 1, 4, 5, 10, 136, 188, 204
PTY_MASTERS = range(128, 136)
CONSOLES = range(1, 64)  # criu/include/tty.h
TUN, AUTOFS = 200, 235
TTY_ITSELF, CONSOLE, PTMX = 0, 1, 2
PLUGINS = ("/usr/lib/criu", "/usr/lib/x86_64-linux-gnu/criu")
# What plugins of CRIU take care of: major numbers are dynamic, so it is the names
BY_PLUGIN = {"/dev/kfd": "amdgpu_plugin.so", "/dev/dri/": "amdgpu_plugin.so", "/dev/nvidia": "cuda_plugin.so"}
REMEDY = "stop what uses the device (for the time of the upgrade), or leave the container out"


def is_terminal(device: int) -> bool:
    """Tell whether CRIU takes a character device for a terminal."""
    major, minor = os.major(device), os.minor(device)
    if major == TTY_AUX:
        return minor in (TTY_ITSELF, CONSOLE, PTMX)
    if major == TTY:
        return minor in CONSOLES
    return major in (PTY_SLAVE, USB_SERIAL, SERIAL) or major in PTY_MASTERS


def is_tun(device: int) -> bool:
    """Tell whether it is ``/dev/net/tun``."""
    return device == os.makedev(MISC, TUN)


def is_known(device: int) -> bool:
    """Tell whether CRIU knows a character device."""
    return (
        os.major(device) == MEMORY
        or device in (os.makedev(MISC, TUN), os.makedev(MISC, AUTOFS))
        or is_terminal(device)
    )


def devices(situation: Situation) -> Iterator[Finding]:
    """Look for open devices."""
    plugins = {name for directory in PLUGINS for name in situation.host.list(directory)}
    found = (
        trouble
        for process in situation.processes
        for each in process.descriptors
        if (trouble := _trouble(process, each, plugins)) is not None
    )
    yield from tell(
        found, "open devices", "none but those that CRIU knows (/dev/null and the like, terminals)"
    )


def _trouble(process: Process, each: Descriptor, plugins: set[str]) -> Trouble | None:
    if each.state is None or each.kind not in (stat.S_IFCHR, stat.S_IFBLK):
        return None
    device = each.state.st_rdev
    shown = f"{each.what} is {each.link} ({os.major(device)}:{os.minor(device)})"
    if each.kind == stat.S_IFCHR and is_tun(device):
        if not process.container.host_network:
            return None
        reason = "CRIU can dump a tun device only together with the network namespace that it is in"
        return Trouble(process, shown, each.source, reason, REMEDY)
    if each.kind == stat.S_IFCHR and is_known(device):
        return None
    plugin = next((plugin for start, plugin in BY_PLUGIN.items() if each.link.startswith(start)), None)
    if plugin in plugins:
        return Trouble(
            process,
            shown,
            each.source,
            f"only CRIU's plugin {plugin} knows whether it can dump this",
            "seamless-upgrade check --probe tries it",
            Status.WARN,
        )
    return Trouble(process, shown, each.source, "CRIU cannot dump an open device of this kind", REMEDY)


CHECKS = (Check("containers.devices", "they have no devices open that CRIU does not know", devices),)
