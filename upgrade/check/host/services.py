# SPDX-License-Identifier: MIT
"""The host's other services: stopped in order before the jump, started again by the new kernel's boot.

A service that runs now, but that no boot would start, does not come back.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from upgrade.check.host.installed import SYSTEMD
from upgrade.check.model import Finding, passed, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.errors import UpgradeError
from upgrade.kexec import quiesce
from upgrade.process import run

PROPERTIES = ("Id", "Type", "UnitFileState", "WantedBy", "RequiredBy", "UpheldBy", "TriggeredBy", "BusName")
# systemctl(1), "is-enabled": nothing on disk starts these
NOT_AT_BOOT = ("disabled", "transient", "enabled-runtime", "linked-runtime", "linked", "indirect")
BY_OTHERS = ("WantedBy", "RequiredBy", "UpheldBy", "TriggeredBy", "BusName")
# What quiesce's target keeps: sysinit.target, and what that pulls in
EARLY = ("sysinit.target", "local-fs.target", "swap.target", "cryptsetup.target", "veritysetup.target")
SHOWN = 8


def services(situation: Situation) -> Iterator[Finding]:
    """Look for services that end, and do not come back or are not stopped in order."""
    if not situation.host.exists(SYSTEMD):
        raise Unknown("systemd does not run", subject="services")
    try:
        found = [unit for unit in _running(situation) if not unit["Id"].startswith("seamless-upgrade")]
    except UpgradeError as e:
        raise Unknown(str(e), subject="services") from e
    lost = [unit["Id"] for unit in found if _is_lost(unit)]
    names = [unit["Id"] for unit in found]
    if lost:
        yield warned(
            "services",
            f"{_named(lost)} would not come back",
            source="systemctl show",
            reason="they run, but nothing starts them at boot",
            remedy=f"systemctl enable {lost[0]}, or start them afterwards",
        )
    if not situation.request.quiesce:
        yield warned(
            "services",
            f"{_named(names)} end without being stopped (--no-quiesce)",
            source="systemctl list-units",
            reason="what they have not written is lost",
            remedy="leave --no-quiesce out",
        )
    elif not lost:
        yield passed(
            "services", f"{_named(names)} are stopped, and started by the next boot", "systemctl show"
        )


def _running(situation: Situation) -> list[Mapping[str, str]]:
    """Return the properties of the services that an upgrade stops."""
    try:
        kept = {quiesce.unit_of(c.cgroup) for c in situation.containers}
    except Unknown:
        kept = set()
    early = {
        word for line in _systemctl("show", "--property=Wants,Requires", "--value", *EARLY) for word in line
    }
    options = ("--plain", "--no-legend", "--full", "--state=active", "--type=service")
    active = [line[0] for line in _systemctl("list-units", *options)]
    stopped = [
        unit
        for unit in active
        if unit not in kept and unit not in early and not any(fnmatchcase(unit, k) for k in quiesce.KEPT)
    ]
    if not stopped:
        return []
    shown = run(["systemctl", "show", f"--property={','.join(PROPERTIES)}", "--", *stopped]).stdout
    blocks = (block.splitlines() for block in shown.strip().split("\n\n"))
    return [dict(line.partition("=")[::2] for line in block) for block in blocks]


def _systemctl(*arguments: str) -> list[list[str]]:
    """Return the words of each line that systemctl answers."""
    lines = run(["systemctl", *arguments]).stdout.splitlines()
    return [line.split() for line in lines if line.strip()]


def _is_lost(unit: Mapping[str, str]) -> bool:
    """Tell whether no boot starts a service again, which is more than a step that has been done."""
    started = unit["Type"] != "oneshot" and unit["UnitFileState"] in NOT_AT_BOOT
    return started and not any(unit.get(name) for name in BY_OTHERS)


def _named(names: list[str]) -> str:
    """Return a number of services, and some of their names."""
    short = [name.removesuffix(".service") for name in sorted(names)]
    more = f" and {len(short) - SHOWN} more" if len(short) > SHOWN else ""
    listed = f" ({', '.join(short[:SHOWN])}{more})" if short else ""
    return f"{len(short)} service{'' if len(short) == 1 else 's'}{listed}"
