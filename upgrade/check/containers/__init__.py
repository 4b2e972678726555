# SPDX-License-Identifier: MIT
"""Can each container be dumped and restored? Everything that CRIU refuses is looked for before the freeze.

What CRIU refuses, and which check finds it, is a table in ``docs/checks/containers.md``.
"""

from upgrade.check.containers import (
    descriptors,
    devices,
    files,
    ipc,
    links,
    mappings,
    mounts,
    named,
    namespaces,
    pipes,
    probe,
    sharing,
    sockets,
    sysctls,
    tasks,
    terminals,
    unix,
    volatile,
    watches,
)

CHECKS = (
    *named.CHECKS,
    *tasks.CHECKS,
    *sharing.CHECKS,
    *namespaces.CHECKS,
    *descriptors.CHECKS,
    *files.CHECKS,
    *watches.CHECKS,
    *devices.CHECKS,
    *terminals.CHECKS,
    *pipes.CHECKS,
    *sockets.CHECKS,
    *unix.CHECKS,
    *mappings.CHECKS,
    *ipc.CHECKS,
    *mounts.CHECKS,
    *volatile.CHECKS,
    *links.CHECKS,
    *sysctls.CHECKS,
    *probe.CHECKS,
)
