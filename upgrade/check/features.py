# SPDX-License-Identifier: MIT
"""Do tasks keep what the processor can do?

A task finds out once what that is (its libc chooses code at start) and goes on using it. CRIU compares processors only
where it is told to (``cpu_cap`` with ``CPU_CAP_IMAGE``), which is made for other machines: here only the command line
can take something away.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from upgrade.check.devices.hardware import listed
from upgrade.check.model import Finding, failed, passed, skipped, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.host import Host

_CPUINFO = "/proc/cpuinfo"
_APPEND = "--append"

# What a switch takes away from tasks (Documentation/admin-guide/kernel-parameters.txt), as flags.
_SWITCHES = {
    "noxsave": ("xsave",),
    "nopku": ("pku",),
    "nousershstk": ("user_shstk",),
    "nofsgsbase": ("fsgsbase",),
    "no5lvl": ("la57",),
    "tsx=off": ("hle", "rtm"),
}
# What goes with a flag, as patterns (arch/x86/kernel/cpu/cpuid-deps.c).
_DEEPER = {
    "xsave": ("xsave?*", "avx", "pku"),
    "xsaves": ("amx_*", "user_shstk", "enqcmd"),
    "avx": ("avx2", "avx512f", "fma", "vaes", "vpclmulqdq"),
    "avx512f": ("avx512*",),
    "avx512vl": ("avx512_*",),
    "pku": ("ospke",),
}
# Without these the kernel does not save a part of the registers, and their instructions end a task
# (xsave_cpuid_features in arch/x86/kernel/fpu/xstate.c). Every libc uses the first ones where it finds them.
_EVERYBODY = ("xsave", "avx", "avx512f")
# These are switched off in the processor, too: tasks that use their instructions or addresses are ended.
_SOME = ("amx_*", "pku", "ospke", "fsgsbase", "la57")
_SHADOW = "user_shstk"
# clearcpuid= takes numbers, too: word * 32 + bit (arch/x86/include/asm/cpufeatures.h)
_NUMBERS = {154: "xsave", 156: "avx", 304: "avx512f", 515: "pku", 600: "amx_tile"}


def features(situation: Situation) -> Iterator[Finding]:
    """Look for features that tasks may use and the new command line takes away."""
    flags = _flags(situation.host)
    if not flags:
        yield skipped("features", "no flags", source=_CPUINFO, reason="what tasks may use is not known")
        return
    told = False
    for word in situation.request.append.split():
        lost = _lost(word, flags)
        if not lost:
            continue
        told = True
        shadow = _with_shadow_stacks(situation) if lost == [_SHADOW] else []
        if shadow or _any(lost, _EVERYBODY):
            yield failed(
                word,
                f"takes {listed(lost)} away" + (f", which {', '.join(shadow)} uses" if shadow else ""),
                source=_APPEND,
                reason="tasks found out at their start that they may use this, and are ended by the first such "
                "instruction, or cannot be restored; CRIU does not notice before",
                remedy=f"leave {word} out of --append, or reboot in the ordinary way",
            )
        else:
            yield warned(
                word,
                f"takes {listed(lost)} away",
                source=_APPEND,
                reason="a task that has found out at its start that it may use this goes on doing so, and may be ended"
                if _any(lost, _SOME)
                else "tasks that look again see less than before; the instructions themselves stay",
                remedy=f"leave {word} out of --append, or restart the containers that use it",
            )
    if not told:
        parts = [each for each in ("xsave", "avx", "avx512f", "amx_tile", "pku", _SHADOW) if each in flags]
        yield passed("features", f"{', '.join(parts) or 'none of interest'} stay as they are", _CPUINFO)


def _flags(host: Host) -> set[str]:
    for line in host.read_or(_CPUINFO, "").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _lost(word: str, flags: set[str]) -> list[str]:
    """Return which of the flags a word of the command line takes away, the ones that everybody uses first."""
    name, _, value = word.partition("=")
    wanted = list(_SWITCHES.get(word, ()))
    if name == "clearcpuid":
        wanted = [
            _NUMBERS.get(int(each), "") if each.isdigit() else each for each in value.lower().split(",")
        ]
    lost: set[str] = set()
    while wanted:
        pattern = wanted.pop()
        for flag in {flag for flag in flags - lost if fnmatchcase(flag, pattern)}:
            lost.add(flag)
            wanted += _DEEPER.get(flag, ())
    return sorted(lost, key=lambda flag: (not _any([flag], _EVERYBODY), flag))


def _any(flags: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(flag, pattern) for flag in flags for pattern in patterns)


def _with_shadow_stacks(situation: Situation) -> list[str]:
    """Return the containers with tasks that have a shadow stack (``x86_Thread_features`` in their status)."""
    try:
        tasks = situation.tasks
    except Unknown:
        return []
    found = []
    for container, pid in tasks:
        for line in situation.host.read_or(f"/proc/{pid}/status", "").splitlines():
            if line.startswith("x86_Thread_features:") and "shstk" in line.split():
                found.append(container.name)
    return list(dict.fromkeys(found))
