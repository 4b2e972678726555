# SPDX-License-Identifier: MIT
"""What lies below this kernel: a container, Xen, another hypervisor, or the bare machine."""

import re
from collections.abc import Iterator

from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation
from upgrade.host import Host

CONTAINER = "/run/systemd/container"
XEN_TYPE = "/sys/hypervisor/type"
XEN_GUEST = "/sys/hypervisor/guest_type"
XEN_RIGHTS = "/proc/xen/capabilities"
CPUINFO = "/proc/cpuinfo"
VENDOR, PRODUCT = "/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name"
SEV_GUEST = "/sys/class/misc/sev-guest"


def hypervisor(situation: Situation) -> Iterator[Finding]:
    """Look for what makes kexec something else than it is on the bare machine."""
    host = situation.host
    if host.exists(CONTAINER):
        yield failed(
            "this host",
            f"is itself a container ({host.read(CONTAINER)})",
            source=CONTAINER,
            reason="a container has no kernel of its own",
            remedy="upgrade the machine that it runs on",
        )
    elif host.read_or(XEN_TYPE, "") == "xen":
        yield _xen(host)
    elif sealed := _sealed(host):
        yield warned(
            "this host",
            f"is a confidential guest ({sealed})",
            source=CPUINFO,
            reason="both kernels have to know how to hand encrypted memory over; nobody has tried that",
            remedy="seamless-upgrade rehearse, or an ordinary kexec without containers first",
        )
    elif "hypervisor" in flags(host):
        name = f"{host.read_or(VENDOR, '')} {host.read_or(PRODUCT, '')}".strip()
        yield passed("this host", f"is a virtual machine ({name or 'it does not say of whom'})", CPUINFO)
    else:
        yield passed("this host", "is no virtual machine", CPUINFO)


def flags(host: Host) -> set[str]:
    """Return the flags of the first processor."""
    found = re.search(r"^flags\s*:(.*)$", host.read(CPUINFO), re.MULTILINE)
    return set(found[1].split()) if found else set()


def _sealed(host: Host) -> str:
    if "tdx_guest" in flags(host):
        return "TDX"
    return "SEV" if host.exists(SEV_GUEST) else ""


def _xen(host: Host) -> Finding:
    guest = host.read_or(XEN_GUEST, "")
    if "control_d" in host.read_or(XEN_RIGHTS, ""):
        return failed(
            "this host",
            "is dom0 of Xen",
            source=XEN_RIGHTS,
            reason="kexec would replace Xen itself, and end every other domain",
            remedy="reboot in the ordinary way",
        )
    if guest == "PV":
        return failed(
            "this host",
            "is a paravirtual guest of Xen",
            source=XEN_GUEST,
            reason="such a guest cannot enter another kernel",
            remedy="make it an HVM or PVH guest, or reboot in the ordinary way",
        )
    return warned(
        "this host",
        f"is a guest of Xen{f' ({guest})' if guest else ''}",
        source=XEN_TYPE,
        reason="Xen resets the guest on kexec, and keeps its memory only if its tools know how",
        remedy="an ordinary kexec without containers first",
    )
