# SPDX-License-Identifier: MIT
"""Does the initrd of the kernel to enter hold what reaches the root file system?"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from upgrade.check.model import Finding, failed, passed, skipped, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.check.target import inuse
from upgrade.check.target.modules import is_driven
from upgrade.errors import DependencyMissing, Refusal
from upgrade.kexec import cmdline, cpio, modules
from upgrade.kexec.modules import Modules

_TREE = re.compile(r"^(?:usr/)?lib/modules/([^/]+)/.")
# Where the initramfs looks for programs
_PROGRAMS = ("bin", "usr/bin", "sbin", "usr/sbin")


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in an initrd."""

    names: frozenset[str] = field(repr=False)
    modules: frozenset[str]
    releases: frozenset[str]
    """The kernels that it has modules of."""
    problem: str = ""
    """Why it was not read to its end."""

    def program(self, name: str) -> bool:
        """Tell whether there is a program."""
        return any(f"{directory}/{name}" in self.names for directory in _PROGRAMS)


def read(situation: Situation) -> Contents:
    """List the initrd of the kernel to enter, as far as it can be unpacked (as the kernel does).

    :raises DependencyMissing: where the program for its compression is not installed
    """
    names, problem = set(), ""
    try:
        for name in cpio.names(situation.target.initrd):
            names.add(name)
    except Refusal as e:
        problem = e.message
    files = [name for name in names if modules.is_module(name)]
    releases = [match[1] for name in files if (match := _TREE.match(name))]
    return Contents(frozenset(names), frozenset(map(modules.name_of, files)), frozenset(releases), problem)


def initrd(situation: Situation) -> Iterator[Finding]:
    """Look for the first programs, and for the modules of the root file system."""
    path = str(situation.target.initrd)
    try:
        found = read(situation)
    except DependencyMissing as e:
        yield skipped(path, str(e), source=path, reason="it cannot be unpacked without", remedy=e.hint or "")
        return
    bad = [
        *_broken(situation, found, path),
        *_programs(situation, found, path),
        *_for_this_kernel(situation, found, path),
    ]
    try:
        bad += _root(situation, found, path)
    except Unknown as e:
        yield skipped(path, f"{e.subject}: {e}", reason="what the root file system needs is not known")
    yield from bad
    if not bad:
        yield passed(
            path, f"{len(found.names)} files, {len(found.modules)} modules; what the root needs is there"
        )


def _broken(situation: Situation, found: Contents, path: str) -> Iterator[Finding]:
    if found.problem:
        yield warned(
            path,
            found.problem,
            source=path,
            reason="the kernel says so at boot, too, and goes on with what came before",
            remedy=f"make it again: update-initramfs -u -k {situation.target.release}",
        )


def _programs(situation: Situation, found: Contents, path: str) -> Iterator[Finding]:
    # upgrade/kexec/initrd.py: our own first userspace is a script that hands over to the initrd's
    init = cmdline.old_rdinit(situation.host.command_line())
    wanted = {
        init: (init.lstrip("/") in found.names, failed, "it is what the kernel starts"),
        "/bin/sh": (found.program("sh"), failed, "our script for the first process ID needs a shell"),
        "mount": (found.program("mount"), warned, "new processes may take the numbers of restored ones"),
    }
    for name, (is_there, make, reason) in wanted.items():
        if not is_there:
            remedy = f"make it again: update-initramfs -u -k {situation.target.release}"
            yield make(path, f"has no {name}", source=path, reason=reason, remedy=remedy)


def _for_this_kernel(situation: Situation, found: Contents, path: str) -> Iterator[Finding]:
    release = situation.target.release
    if found.releases and release not in found.releases:
        yield failed(
            path,
            f"has modules of {', '.join(sorted(found.releases))}, not of {release}",
            source=path,
            reason="the new kernel cannot load them, and does not find its root file system",
            remedy=f"give the right one with --initrd, or make it: update-initramfs -c -k {release}",
        )


def _root(situation: Situation, found: Contents, path: str) -> Iterator[Finding]:
    host, kernel = situation.host, situation.modules
    mount = inuse.root(host)
    if mount is None or not mount.source.startswith("/dev/"):
        return  # a root on the network or in memory: its initrd is of another kind
    wanted = dict.fromkeys(sorted(inuse.mappers(host, mount)), f"{mount.where} lies on it")
    inside = _only(kernel, found)
    for disk, chain in inuse.disks(host, mount).items():
        # what is there may lack what it needs itself; where another module drives the device, it may be away
        absent = [each for each in chain if each.module in found.modules or not is_driven(inside, each)]
        wanted |= {each.module: f"{disk} has no driver then" for each in absent}
    kinds = [mount.kind, *kernel.for_alias(f"fs-{mount.kind}")]
    there = [name for name in kinds if kernel.is_builtin(name) or name in found.modules]
    wanted[there[0] if there else mount.kind] = f"{mount.where} cannot be mounted then"
    for name, reason in wanted.items():
        lacking = [
            each for each in kernel.with_needs(name) if each in kernel.files and each not in found.modules
        ]
        if lacking:
            yield failed(
                path,
                f"lacks the module {', '.join(lacking)}",
                source=path,
                reason=reason,
                remedy=f"add it to /etc/initramfs-tools/modules; update-initramfs -u -k {situation.target.release}",
            )


def _only(kernel: Modules, found: Contents) -> Modules:
    """Return the modules of a kernel that an initrd holds, and those that are built in."""
    files = {name: file for name, file in kernel.files.items() if name in found.modules}
    return Modules(kernel.directory, files, kernel.needs, kernel.builtin)
