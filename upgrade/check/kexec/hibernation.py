# SPDX-License-Identifier: MIT
"""Would the new kernel resume a hibernated system instead of booting?

``resume=`` on the command line does no harm by itself. An image on that device does: the initramfs resumes it, and
what was preserved is never restored.
"""

import os
import re
from collections.abc import Iterator

from upgrade.check.model import Finding, failed, passed
from upgrade.check.situation import Situation
from upgrade.host import Host

RESUME = "/sys/power/resume"
OFFSET = "/sys/power/resume_offset"
NO_DEVICE = "0:0"

PAGE_BYTES = 4096
# kernel/power/swap.c: HIBERNATE_SIG; the end of struct swsusp_header, which fills a page
SIGNATURE = b"S1SUSPEND"
SIGNATURE_AT = PAGE_BYTES - 10


def hibernation(situation: Situation) -> Iterator[Finding]:
    """Look for an image where the new kernel will look for one."""
    host = situation.host
    number = host.read_or(RESUME, NO_DEVICE)
    if re.search(
        r"(?:^|\s)(noresume|nohibernate)(?:\s|$)", f"{host.command_line()} {situation.request.append}"
    ):
        yield passed("hibernation", "switched off on the command line", "/proc/cmdline")
    elif number == NO_DEVICE:
        yield passed("hibernation", "no device to resume from", RESUME)
    else:
        device = _device(host, number)
        if has_image(host, device, int(host.read_or(OFFSET, "0"))):
            yield failed(
                device,
                "holds the image of a hibernated system",
                source=device,
                reason="the new kernel's initramfs would resume that system instead of booting",
                remedy=f"take --append noresume, or forget the image: mkswap {device}",
            )
        else:
            yield passed(device, "holds no image of a hibernated system", device)


def has_image(host: Host, device: str, offset_pages: int) -> bool:
    """Tell whether a swap device (or a swap file on it, so many pages from its start) holds an image."""
    fd = os.open(host.path(device), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, len(SIGNATURE), offset_pages * PAGE_BYTES + SIGNATURE_AT) == SIGNATURE
    finally:
        os.close(fd)


def _device(host: Host, number: str) -> str:
    """Return the name of a block device, given as ``major:minor``."""
    lines = host.read(f"/sys/dev/block/{number}/uevent").splitlines()
    return "/dev/" + dict(line.split("=", 1) for line in lines)["DEVNAME"]
