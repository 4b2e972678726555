# SPDX-License-Identifier: MIT
"""All checks, in the order in which they are told."""

from upgrade.check import containers, devices, host, kexec, memory, processor, target
from upgrade.check.model import Check

# Titles of the families, in their order
FAMILIES = {
    "kexec": "Entering a kernel",
    "devices": "Devices",
    "processor": "Processor",
    "memory": "Memory",
    "target": "The kernel to enter",
    "containers": "Containers",
    "host": "Host",
}


def checks() -> tuple[Check, ...]:
    """Return every check there is."""
    return (
        *kexec.CHECKS,
        *devices.CHECKS,
        *processor.CHECKS,
        *memory.CHECKS,
        *target.CHECKS,
        *containers.CHECKS,
        *host.CHECKS,
    )
