# SPDX-License-Identifier: MIT
"""What the kernel to enter was built with, and what its command line takes away again."""

from collections.abc import Callable, Iterator, Sequence

from upgrade import cgroup
from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.check.target.needs import MODULES, NEEDS, Need
from upgrade.check.target.use import Use, named

CONTROLLERS = f"{cgroup.MOUNT_POINT}/cgroup.controllers"
_OFF = ("0", "n", "no", "off", "false")


def config(situation: Situation) -> Iterator[Finding]:
    """Look for every option that is needed."""
    found, use = situation.kernel_config, Use(situation)
    wanted = [(need, by) for need in NEEDS if (by := need.by(use))]
    missing = [finding for need, by in wanted for finding in _missing(situation, need, by)]
    yield from missing
    if not missing:
        count = len({option for need, _ in wanted for option in need.options})
        yield passed(situation.target.release, f"all {count} options that are needed", found.source)


def _missing(situation: Situation, need: Need, by: Sequence[str]) -> Iterator[Finding]:
    """Yield what is missing of one need, in at most three findings."""
    config = situation.kernel_config
    unset = [option for option in need.options if not config.get(option)]
    refused = [option for option in unset if option in config.refused]
    # An option that is not even listed depends on another one, which is told, or became part of every kernel.
    unknown = [option for option in unset if option not in config.refused]
    gone = [o for o in need.options if config.get(o) == "m" and not _is_installed(situation, o)]
    strict = failed if need.fails else warned
    for options, make, seen, remedy in (
        (refused, strict, "not set", "choose a kernel that was built with it"),
        (
            unknown,
            warned,
            "not known to it",
            "choose a kernel that was built with it, if it is not part of each",
        ),
        (
            gone,
            strict,
            "a module that is not installed",
            f"install the modules of {situation.target.release}",
        ),
    ):
        if options:
            names = ", ".join(f"CONFIG_{option}" for option in options)
            reason = f"{named(by)} needs it for {need.why}"
            yield make(names, seen, source=config.source, reason=reason, remedy=remedy)


def _is_installed(situation: Situation, option: str) -> bool:
    try:
        return option not in MODULES or situation.modules.has(MODULES[option])
    except Unknown:
        return True  # target.modules says that there are none


def features(situation: Situation) -> Iterator[Finding]:
    """Look for what the new command line switches off: it is the running one and ``--append``."""
    use = Use(situation)
    found = [each for word in situation.request.append.split() for each in _taken(word, use)]
    if not situation.host.exists(CONTROLLERS):
        found.append(
            failed(
                "control groups",
                "version 1, or none",
                source=CONTROLLERS,
                reason="containers are frozen and restored in control groups of version 2 only",
                remedy="boot with systemd.unified_cgroup_hierarchy=1",
            )
        )
    yield from found
    if not found:
        yield passed("new command line", "switches nothing off that is in use", "/proc/cmdline")


def _taken(word: str, use: Use) -> Iterator[Finding]:
    """Yield what one more word on the command line takes away, if anybody has it now."""
    name, _, value = word.partition("=")
    by: Sequence[str] = ()
    if name == "cgroup_disable":
        by = [who for each in value.split(",") for who in use.controllers(each)]
    elif name in _SWITCHES and value.lower() in _SWITCHES[name][0]:
        by = _SWITCHES[name][1](use)
    if by:
        yield failed(
            word,
            "on the command line of the new kernel",
            source="--append",
            reason=f"{named(by)} has it now and cannot be restored without",
            remedy="leave it out of --append",
        )


def _everybody(use: Use) -> Sequence[str]:
    return [c.name for c in use.containers] or ["every container"]


# Documentation/admin-guide/kernel-parameters.txt, kernel-command-line(7) of systemd; with the values that switch off
_SWITCHES: dict[str, tuple[tuple[str, ...], Callable[[Use], Sequence[str]]]] = {
    "systemd.unified_cgroup_hierarchy": (_OFF, _everybody),
    "ia32_emulation": (_OFF, lambda use: use.narrow),
    "vdso32": (_OFF, lambda use: use.narrow),
    "vdso": (("0",), _everybody),
    "noxsave": (("",), _everybody),
}
