# SPDX-License-Identifier: MIT
"""Does the new kernel make the same processors of them?"""

from collections.abc import Iterator

from upgrade import cgroup
from upgrade.check.devices.hardware import listed
from upgrade.check.features import features
from upgrade.check.model import Check, Finding, passed, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.host import Host
from upgrade.kexec import cmdline

_CPU = "/sys/devices/system/cpu"

# Documentation/admin-guide/tainted-kernels.rst: set by late loading, too
_OUT_OF_SPEC = 1 << 2


def microcode(situation: Situation) -> Iterator[Finding]:
    """Compare the processors' microcode."""
    host = situation.host
    source = f"{_CPU}/cpu*/microcode/version"
    versions = {
        host.read_or(f"{_CPU}/{name}/microcode/version", "")
        for name in host.list(_CPU)
        if name.startswith("cpu") and name[3:].isdigit()
    } - {""}
    if not versions:
        yield passed("microcode", "not to be seen: a virtual machine's host has it", source)
    elif len(versions) > 1:
        yield warned(
            "microcode",
            f"differs between processors: {', '.join(sorted(versions))}",
            source=source,
            reason="the new kernel may see other features than this one, as it takes what all processors have",
            remedy="load it on all of them (echo 1 > /sys/devices/system/cpu/microcode/reload), or reboot first",
        )
    else:
        late = int(host.read_or("/proc/sys/kernel/tainted", "0")) & _OUT_OF_SPEC
        yield passed(
            "microcode",
            f"{versions.pop()} on all processors; kexec keeps it"
            + (
                "; if it was loaded late, the new kernel may show features that this one does not"
                if late
                else ""
            ),
            source,
        )


def count(situation: Situation) -> Iterator[Finding]:
    """Compare the number of processors before and after."""
    host = situation.host
    online = _numbers(host.read_or(f"{_CPU}/online", ""))
    words = _words(situation)
    kept = set(online)
    limits = [limit for limit in map(_limit, words) if limit is not None]
    if limits:
        kept = set(sorted(online)[: min(limits)])
    if any(map(_is_nosmt, words)):
        kept -= {number for number in kept if _is_second(host, number)}
    if kept == online:
        yield passed("processors", f"{len(online)}, all of them stay", f"{_CPU}/online")
        return
    pinned = _pinned(situation, online - kept)
    yield warned(
        "processors",
        f"{len(kept)} of {len(online)} stay"
        + (f", and {listed(pinned)} is bound to others" if pinned else ""),
        source="/proc/cmdline, --append",
        reason="the containers have fewer processors, and those that are bound to missing ones may not be put back so",
        remedy="leave maxcpus=, nr_cpus=, nosmp and nosmt out of the command line",
    )


def hotplug(situation: Situation) -> Iterator[Finding]:
    """Look for processors that were taken offline."""
    host = situation.host
    present, online = (_numbers(host.read_or(f"{_CPU}/{name}", "")) for name in ("present", "online"))
    away = sorted(present - online)
    stays = [word for word in _words(situation) if _limit(word) is not None or _is_nosmt(word)]
    if not away or stays:
        why = f"{len(away)} are offline, and {stays[0]} keeps them so" if away else "none is offline"
        yield passed("processors", why, f"{_CPU}/online")
        return
    siblings = host.read_or(f"{_CPU}/smt/control", "") in ("off", "forceoff")
    yield warned(
        f"processors {', '.join(map(str, away))}",
        "are offline now" + (" (SMT was switched off)" if siblings else ""),
        source=f"{_CPU}/online",
        reason="the new kernel brings them online: what was kept apart may share a core again"
        if siblings
        else "the new kernel brings them online again",
        remedy="--append nosmt"
        if siblings
        else f"take them offline afterwards: chcpu -d {','.join(map(str, away))}",
    )


def _words(situation: Situation) -> list[str]:
    """Return the new kernel's command line, as far as this matters here."""
    return [*cmdline.base(situation.host.command_line()).split(), *situation.request.append.split()]


def _limit(word: str) -> int | None:
    """Return how many processors a word of the command line leaves at most."""
    name, _, value = word.partition("=")
    if name == "nosmp":
        return 1
    return max(1, int(value)) if name in ("maxcpus", "nr_cpus") and value.isdigit() else None


def _is_nosmt(word: str) -> bool:
    """Tell whether a word switches SMT off (``mitigations=auto,nosmt``: on processors that have the weakness)."""
    return word == "nosmt" or word.startswith("nosmt=") or word.endswith(",nosmt")


def _is_second(host: Host, number: int) -> bool:
    """Tell whether a processor is not the first of its core."""
    siblings = _numbers(host.read_or(f"{_CPU}/cpu{number}/topology/thread_siblings_list", ""))
    return bool(siblings) and number != min(siblings)


def _pinned(situation: Situation, gone: set[int]) -> list[str]:
    """Return the containers whose cpuset names processors that go away."""
    try:
        containers = situation.containers
    except Unknown:
        return []
    wanted = {c.name: situation.host.read_or(cgroup.path(c.cgroup, "cpuset.cpus"), "") for c in containers}
    return [name for name, text in wanted.items() if _numbers(text) & gone]


def _numbers(text: str) -> set[int]:
    """Return the processors of a list like ``0-3,8``."""
    ranges = (part.partition("-") for part in text.split(",") if part.strip())
    return {number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)}


CHECKS = (
    Check("processor.microcode", "all processors have the same microcode", microcode),
    Check("processor.features", "tasks keep what the processor can do", features),
    Check("processor.count", "no processor goes away", count),
    Check("processor.hotplug", "no processor comes back", hotplug),
)
