# SPDX-License-Identifier: MIT
"""The PIDs of an ordinary boot begin above those that the next kernel's own threads take.

After an upgrade the initrd's first program raises them (``upgrade/kexec/initrd.py``); at an ordinary boot a unit does.
"""

from upgrade import plan

UNIT = "seamless-upgrade-pids.service"


def floor(cpus: int) -> int:
    """Return above which number processes begin: twice what ``check`` takes for the threads of a kernel."""
    return 2 * (plan.PIDS_OF_KERNEL + plan.PIDS_PER_CPU * cpus)
