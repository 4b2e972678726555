# SPDX-License-Identifier: MIT
"""What the new kernel is told by the old one and not by firmware: the memory map, EFI, the crash kernel."""

import re
from collections.abc import Iterator

from upgrade.check.model import Finding, passed, warned
from upgrade.check.situation import Situation, Unknown

EFI = "/sys/firmware/efi"
MEMORY_MAP = "/sys/firmware/memmap"
CRASH_SIZE = "/sys/kernel/kexec_crash_size"
CRASH_LOADED = "/sys/kernel/kexec_crash_loaded"

# E820_MAX_ENTRIES_ZEROPAGE in arch/x86/include/uapi/asm/setup_data.h
MOST_ENTRIES = 128
RAM = "System RAM"


def efi(situation: Situation) -> Iterator[Finding]:
    """Look for what ``setup_efi_state()`` (arch/x86/kernel/kexec-bzimage64.c) hands over."""
    host = situation.host
    if not host.exists(EFI):
        yield passed("EFI", "this machine does not boot with it", EFI)
        return
    maps, variables = host.list(f"{EFI}/runtime-map"), host.list(f"{EFI}/efivars")
    if maps and host.read_or(f"{EFI}/fw_platform_size", "64") == "32":
        yield warned(
            "EFI",
            "its firmware is 32-bit",
            source=f"{EFI}/fw_platform_size",
            reason="kexec_file_load does not take a kernel there; the program kexec loads it instead",
            remedy="none is needed unless kexec.signature wants a signature, which that program cannot pass on",
        )
    elif maps:
        yield passed("EFI", f"{len(maps)} maps of runtime services are handed over", f"{EFI}/runtime-map")
    elif not variables:
        yield passed("EFI", "runtime services are off, and stay off", f"{EFI}/efivars")
    else:
        yield warned(
            "EFI",
            "no map of runtime services",
            source=f"{EFI}/runtime-map",
            reason="the new kernel cannot call EFI: no variables, no change of boot entries until the next boot",
            remedy="boot a kernel with CONFIG_EFI_RUNTIME_MAP once, in the ordinary way, if you need them",
        )


def memory_map(situation: Situation) -> Iterator[Finding]:
    """Count the entries of the memory map: ``setup_e820_entries()`` hands over so many at most."""
    host = situation.host
    names = sorted((name for name in host.list(MEMORY_MAP) if name.isdigit()), key=int)
    if not names:
        raise Unknown(f"{MEMORY_MAP} has no entries", subject="memory map")
    entries = sorted(_entry(situation, name) for name in names)
    lost = sum(size for _, size, kind in entries[MOST_ENTRIES:] if kind == RAM)
    if lost:
        yield warned(
            "memory map",
            f"{len(entries)} entries",
            source=MEMORY_MAP,
            reason=f"a kernel that is entered is told of {MOST_ENTRIES}: it would lack {lost >> 20} MiB",
            remedy="look whether a firmware update or setting makes the map shorter",
        )
    else:
        yield passed(
            "memory map", f"{len(entries)} entries, all memory in the first {MOST_ENTRIES}", MEMORY_MAP
        )


def _entry(situation: Situation, name: str) -> tuple[int, int, str]:
    """Return start, size and kind of an entry."""
    start, end, kind = (
        situation.host.read(f"{MEMORY_MAP}/{name}/{file}") for file in ("start", "end", "type")
    )
    return int(start, 16), int(end, 16) - int(start, 16) + 1, kind


def crash_kernel(situation: Situation) -> Iterator[Finding]:
    """Look at the memory that is kept for a crash kernel."""
    host = situation.host
    size = host.read_or(CRASH_SIZE, "0")
    asked = re.search(r"(?:^|\s)(crashkernel=\S+)", f"{host.command_line()} {situation.request.append}")
    if int(size):
        loaded = "is loaded" if host.read_or(CRASH_LOADED, "0") == "1" else "is not loaded"
        yield passed(
            "crash kernel",
            f"{int(size) >> 20} MiB are kept for it; it {loaded}, and has to be after an upgrade",
            CRASH_SIZE,
        )
    elif asked and asked[1] != "crashkernel=0":
        yield warned(
            "crash kernel",
            f"{asked[1]} is on the command line, but no memory is kept for it",
            source=CRASH_SIZE,
            reason="the new kernel may keep it, and has so much less for the containers",
            remedy="take crashkernel= off the command line, or give it a size that fits",
        )
    else:
        yield passed("crash kernel", "no memory is kept for one", CRASH_SIZE)
