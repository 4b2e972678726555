# SPDX-License-Identifier: MIT
"""Are the modules of the kernel to enter installed, and is everything among them that this host runs on?"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.check.target import inuse
from upgrade.check.target.inuse import Driven
from upgrade.check.target.use import Use, named
from upgrade.kexec import filesystems
from upgrade.kexec.filesystems import Mount
from upgrade.kexec.modules import DIRECTORIES, Modules


class Make(Protocol):
    """Makes a finding: :func:`failed` or :func:`warned`."""

    def __call__(self, subject: str, seen: str, *, source: str = "", reason: str, remedy: str) -> Finding: ...


def modules(situation: Situation) -> Iterator[Finding]:
    """Look for the modules of devices, file systems and packet filters that are in use."""
    release = situation.target.release
    absent = _not_installed(situation, release)
    if absent:
        yield absent
        return
    found, missing = situation.modules, False
    for each in (_devices, _filesystems, _network):
        for finding in each(situation, found):
            missing = True
            yield finding
    if not missing:
        yield passed(
            release, f"{len(found.files)} modules, with all that are in use here", str(found.directory)
        )


def _not_installed(situation: Situation, release: str) -> Finding | None:
    try:
        if "MODULES" in situation.kernel_config.refused:
            return passed(release, "has no modules at all", situation.kernel_config.source)
    except Unknown:
        pass
    directories = [
        directory for base in DIRECTORIES if situation.host.exists(directory := f"{base}/{release}")
    ]
    if directories and any(situation.host.exists(f"{each}/modules.dep") for each in directories):
        return None
    return failed(
        release,
        "its modules are not known to modprobe" if directories else "its modules are not installed",
        source=f"{directories[0]}/modules.dep" if directories else f"{DIRECTORIES[0]}/{release}",
        reason="the range that survives and the network lock need modules",
        remedy=f"depmod {release}" if directories else f"install the package linux-image-{release}",
    )


def is_driven(found: Modules, device: Driven) -> bool:
    """Tell whether a kernel drives a device, by the module of today or by another one.

    Where the module of today is not known, nothing is: what drivers in a kernel itself answer to is listed in newer
    kernels only.
    """
    return not device.module or found.has(device.module) or found.drives([device.modalias])


def has_filesystem(found: Modules, kind: str) -> bool:
    """Tell whether a kernel has a type of file system."""
    name = kind.partition(".")[0]  # fuse.sshfs
    return found.has(name) or any(found.has(each) for each in found.for_alias(f"fs-{name}"))


def _devices(situation: Situation, found: Modules) -> Iterator[Finding]:
    host = situation.host
    for name, chain in inuse.network_cards(host).items():
        yield from _driven(situation, found, f"network card {name}", chain, failed)
    for mount in inuse.stored(host):
        make = failed if _is_needed(situation, mount) else warned
        for name, chain in inuse.disks(host, mount).items():
            yield from _driven(situation, found, f"disk {name} ({mount.where})", chain, make)
        for name in sorted(inuse.mappers(host, mount)):
            if not found.has(name):
                yield _missing(situation, mount.where, name, "its device is not made without", make)


def _driven(
    situation: Situation, found: Modules, subject: str, chain: Iterable[Driven], make: Make
) -> Iterator[Finding]:
    for device in chain:
        if not is_driven(found, device):
            yield _missing(situation, subject, device.module, f"{device.path.name} has no driver then", make)


def _filesystems(situation: Situation, found: Modules) -> Iterator[Finding]:
    needed: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for mount in inuse.stored(situation.host):
        by = needed if _is_needed(situation, mount) else others
        by.setdefault(mount.kind, []).append(mount.where)
    for kind, names in Use(situation).filesystems.items():
        if kind in inuse.OF_CONTAINERS:
            needed.setdefault(kind, []).extend(names)
    for kinds, make in ((needed, failed), (others, warned)):
        for kind, where in kinds.items():
            if not has_filesystem(found, kind) and not (make is warned and kind in needed):
                reason = f"{named(where)} cannot do without it"
                yield _missing(situation, f"file system {kind}", kind, reason, make)


def _is_needed(situation: Situation, mount: Mount) -> bool:
    """Tell whether the host does not boot without a mount, or a container has something of it in its own tree."""
    apart = set(Use(situation).namespaces("mnt"))
    pids = [c.root_pid for c in Use(situation).containers if c.name in apart]
    theirs = {
        each.device
        for pid in pids
        for each in filesystems.parse(situation.host.read_or(f"/proc/{pid}/mountinfo", ""))
    }
    return mount.device in theirs or inuse.is_needed(situation.host, mount)


def _network(situation: Situation, found: Modules) -> Iterator[Finding]:
    host = situation.host
    yield from _warned(
        situation, found, "network", inuse.network_modules(host), "parts of the host's network"
    )
    foreign = inuse.foreign_modules(host)
    yield from _warned(
        situation, found, "modules from elsewhere", foreign, "what was built for this kernel only"
    )


def _warned(
    situation: Situation, found: Modules, subject: str, names: Iterable[str], what: str
) -> Iterator[Finding]:
    gone = [name for name in names if not found.has(name)]
    if gone:
        yield warned(
            subject,
            f"loaded now, but not installed for {situation.target.release}: {named(gone, 8)}",
            source="/proc/modules",
            reason=f"{what} may not come back in the new kernel",
            remedy="install them for the new kernel (dkms autoinstall), unless it does without",
        )


def _missing(situation: Situation, subject: str, module: str, reason: str, make: Make) -> Finding:
    release = situation.target.release
    return make(
        subject,
        f"the module {module} is not installed for {release}",
        source=str(situation.modules.directory),
        reason=reason,
        remedy="install it for the new kernel (an extra package of modules, or dkms), or choose another kernel",
    )
