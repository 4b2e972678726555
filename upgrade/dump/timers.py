# SPDX-License-Identifier: MIT
"""Periodic timers (timerfd) that expired while CRIU dumped: mended in its images, or they would never fire again.

Of a timer that has expired and was not read yet the kernel says that nothing is left (fs/timerfd.c, timerfd_show());
it is begun anew by whoever reads it. CRIU sets what is left, and with nothing left the timer is disarmed (criu/pie/
restorer.c, timerfd_arm()). With an interval of a second every third timer dies so in a dump of 0.3 s.
"""

import struct
from pathlib import Path
from typing import Any

from upgrade import pagemaps
from upgrade.criu import image_messages

# criu/include/magic.h: FILES_MAGIC
MAGIC = struct.pack("<II", pagemaps.IMG_COMMON_MAGIC, 0x56303138)
FILE = "files.img"


def prepare() -> None:
    """Import what :func:`mend` needs, before it is downtime."""
    image_messages("fdinfo_pb2")


def mend(directory: Path) -> int:
    """Let the timers of a dump go on that have expired; return how many.

    They have their expirations still, and fire again after one interval.

    :raises UpgradeError: if the images cannot be understood
    """
    path = directory / FILE
    if not path.exists():
        return 0
    entry = image_messages("fdinfo_pb2").file_entry
    found = [entry.FromString(message) for message in pagemaps.messages(path, MAGIC)]
    dead = [each.tfd for each in found if each.HasField("tfd") and _is_dead(each.tfd)]
    for timer in dead:
        timer.vsec, timer.vnsec = timer.isec, timer.insec
    if dead:
        pagemaps.write_messages(path, MAGIC, found)
    return len(dead)


def _is_dead(timer: Any) -> bool:
    """Tell an expired timer from one that is disarmed: that has no expirations."""
    left = timer.vsec or timer.vnsec
    return bool(timer.ticks and (timer.isec or timer.insec) and not left)
