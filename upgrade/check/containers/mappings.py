# SPDX-License-Identifier: MIT
"""Memory that CRIU cannot dump: mapped devices, rings of io_uring and perf (criu/proc_parse.c, ``handle_vma``)."""

import stat
from collections.abc import Iterator
from functools import partial

from upgrade.check.containers import devices
from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding
from upgrade.check.processes import File, MemoryMapping, Process
from upgrade.check.situation import Situation

ZERO = (1, 5)  # /dev/zero
REMEDY = "stop what uses it (for the time of the upgrade), or leave the container out"
ANONYMOUS = "anon_inode:"
# Private mappings that the kernel makes, and does not let anybody read
KERNELS = {"[uprobes]": "the trampolines of uprobes (perf or a BPF program traces it)"}


def mappings(situation: Situation) -> Iterator[Finding]:
    """Look at every mapping."""
    found = (trouble for process in situation.processes for trouble in _of_process(process))
    yield from tell(found, "mappings", "all are of memory, files, or rings that CRIU knows")


def _of_process(process: Process) -> Iterator[Trouble]:
    for each in process.mappings:
        yield from _mapping(process, each)
    for file in process.mapped:
        yield from _file(process, file)


def _mapping(process: Process, each: MemoryMapping) -> Iterator[Trouble]:
    told = partial(Trouble, process, source=f"{process.directory}/maps", remedy=REMEDY)
    at = each.span.partition("-")[0]
    if each.name.startswith(ANONYMOUS):
        name = each.name.removeprefix(ANONYMOUS)
        yield told(what=f"has {name} mapped at {at}", reason="CRIU cannot dump a mapping that is no file")
    elif each.name in KERNELS:
        yield told(
            what=f"has {KERNELS[each.name]} mapped at {at}",
            reason="CRIU cannot dump memory of the kernel's own",
        )


def _file(process: Process, each: File) -> Iterator[Trouble]:
    if each.state is None or each.kind in (0, stat.S_IFREG, stat.S_IFSOCK):
        return
    number = each.state.st_rdev
    if each.kind == stat.S_IFCHR and (number >> 8, number & 0xFF) == ZERO:
        return
    if any(each.link.startswith(start) for start in devices.BY_PLUGIN):
        return  # the open device is told about
    yield Trouble(
        process,
        f"{each.what} is {each.link}",
        each.source,
        "CRIU cannot dump a mapping of a device",
        REMEDY,
    )


CHECKS = (Check("containers.mappings", "CRIU can dump their memory", mappings),)
