# SPDX-License-Identifier: MIT
"""Which devices may not survive the jump, or hold the restore up?"""

from upgrade.check.devices.inuse import gpu, sriov, vfio, watchdog
from upgrade.check.devices.known import known_bad
from upgrade.check.devices.network import network
from upgrade.check.devices.root import root
from upgrade.check.devices.shutdown import dma, shutdown
from upgrade.check.model import Check

CHECKS = (
    Check("devices.known-bad", "no driver is known for trouble after kexec", known_bad),
    Check("devices.shutdown", "every device that writes to memory is told to stop", shutdown),
    Check("devices.dma", "what keeps devices out of memory", dma),
    Check("devices.gpu", "no program uses a GPU or an accelerator", gpu),
    Check("devices.vfio", "no program drives a device by itself", vfio),
    Check("devices.sriov", "no device is divided into virtual ones", sriov),
    Check("devices.watchdog", "no watchdog resets the machine during the jump", watchdog),
    Check("devices.root", "the root file system comes back by itself", root),
    Check("devices.network", "the host's traffic goes through network cards", network),
)
