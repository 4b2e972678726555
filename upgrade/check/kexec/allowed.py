# SPDX-License-Identifier: MIT
"""Can a kernel be loaded here, and may it?"""

import platform
from collections.abc import Iterator

from upgrade import linux
from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.host import Host
from upgrade.kexec.load import is_loaded

ARCHITECTURE = "x86_64"
ARCH = "/proc/sys/kernel/arch"
LOADED = "/sys/kernel/kexec_loaded"
DISABLED = "/proc/sys/kernel/kexec_load_disabled"
LIMIT = "/proc/sys/kernel/kexec_load_limit_reboot"
UNLIMITED = -1


def architecture(situation: Situation) -> Iterator[Finding]:
    """Look at the machine's architecture."""
    found = situation.host.read_or(ARCH, "") or platform.machine()  # the file came with Linux 6.1
    if found == ARCHITECTURE:
        yield passed("architecture", found, ARCH)
    else:
        yield failed(
            "architecture",
            found,
            source=ARCH,
            reason="boot headers, vDSOs and system calls are known for x86_64 only",
            remedy="reboot in the ordinary way",
        )


def compiled(situation: Situation) -> Iterator[Finding]:
    """Look for the system calls that load a kernel."""
    host = situation.host
    if not host.exists("/sys/kernel"):
        raise Unknown("/sys is not mounted", subject="kexec")
    limited = (
        load_limit(host) != UNLIMITED
    )  # to ask would count as a load, and who has the limit has the calls
    calls = ("kexec_file_load",) if limited else linux.kexec_calls()
    remedy = "boot a kernel that is built with CONFIG_KEXEC_FILE once, in the ordinary way"
    if not host.exists(LOADED) or not calls:
        yield failed(
            "kexec",
            f"there is no {LOADED}" if calls else "neither kexec_file_load nor kexec_load",
            source=LOADED,
            reason="the running kernel is built without kexec",
            remedy=remedy,
        )
    elif "kexec_file_load" not in calls:
        yield warned(
            "kexec",
            "kexec_load only",
            source=LOADED,
            reason="there is no kexec_file_load, so the program kexec prepares the kernel's memory",
            remedy=remedy,
        )
    else:
        yield passed("kexec", " and ".join(calls), LOADED)


def allowed(situation: Situation) -> Iterator[Finding]:
    """Look for what an administrator can switch off."""
    host = situation.host
    if not host.exists(DISABLED):
        raise Unknown(f"there is no {DISABLED}", subject="loading")
    limit = load_limit(host)
    if is_disabled(host):
        yield failed(
            "kexec_load_disabled",
            "1",
            source=DISABLED,
            reason="no kernel can be loaded until the next boot",
            remedy="take kernel.kexec_load_disabled out of /etc/sysctl.d and reboot once, in the ordinary way",
        )
    elif limit == 0:
        yield failed(
            "kexec_load_limit_reboot",
            "0",
            source=LIMIT,
            reason="no more kernels can be loaded until the next boot",
            remedy="take kernel.kexec_load_limit_reboot out of /etc/sysctl.d and reboot once, in the ordinary way",
        )
    elif limit != UNLIMITED:
        yield warned(
            "kexec_load_limit_reboot",
            str(limit),
            source=LIMIT,
            reason="an upgrade takes one load, and one more if it is undone: it cannot be tried again as often",
            remedy="take kernel.kexec_load_limit_reboot out of /etc/sysctl.d before the next boot",
        )
    else:
        yield passed("loading", "is not switched off, and not limited", DISABLED)


def loaded(situation: Situation) -> Iterator[Finding]:
    """Look for a kernel that somebody else loaded."""
    if is_loaded(situation.host):
        yield warned(
            "loaded kernel",
            "1",
            source=LOADED,
            reason="a kernel is loaded already; an upgrade replaces it",
            remedy="kexec -u if nobody needs it",
        )
    else:
        yield passed("loaded kernel", "0", LOADED)


def is_disabled(host: Host) -> bool:
    """Tell whether ``kexec_load_disabled`` is set."""
    return host.read_or(DISABLED, "0") == "1"


def load_limit(host: Host) -> int:
    """Return how many loads are left (unloading counts as one); :data:`UNLIMITED` if nobody set a limit."""
    return int(host.read_or(LIMIT, str(UNLIMITED)))
