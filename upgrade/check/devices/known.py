# SPDX-License-Identifier: MIT
"""Drivers that are known for not surviving kexec: ``data/drivers.toml``."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from upgrade.check.devices import hardware
from upgrade.check.devices.hardware import Device
from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation
from upgrade.host import Host

MODULE = "module"
"""The bus of entries about modules."""
PROBED = "shutdown"
"""What the name of every probed function contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of a driver; the file itself says what the fields mean."""

    names: tuple[str, ...]
    bus: str
    severity: str
    symptom: str
    remedy: str
    sources: tuple[str, ...]
    ids: tuple[str, ...] = ()
    address: str = "*"
    probe: str = ""
    fixed: str = ""

    def is_about(self, host: Host, device: Device) -> bool:
        """Tell whether it means a device."""
        return (
            device.driver in self.names
            and fnmatchcase(device.bus, self.bus)
            and fnmatchcase(device.name, self.address)
            and (not self.ids or hardware.pci_id(host, device) in self.ids)
        )


def entries() -> list[Entry]:
    """Return all that is known."""
    return [Entry(**_fields(each)) for each in _file()["driver"]]


def elsewhere() -> Mapping[str, Sequence[str]]:
    """Return, by driver, the functions that are its shutdown method though they are not in its module."""
    found: Mapping[str, Sequence[str]] = _file()["elsewhere"]
    return found


def known_bad(situation: Situation) -> Iterator[Finding]:
    """Compare every driver in use with what is known."""
    host, devices = situation.host, hardware.bound(situation.host)
    told = False
    functions = cache(lambda: _functions(host))
    history: list[Finding] = []
    for entry in entries():
        about = (
            [f"module {name}" for name in entry.names if _is_used(host, name)]
            if entry.bus == MODULE
            else [f"{each.driver} ({each.name})" for each in devices if entry.is_about(host, each)]
        )
        if not about or (entry.probe and entry.probe in functions()):
            continue
        if entry.severity == "history":
            fixed = f"; fixed in commit {entry.fixed}" if entry.fixed else ""
            history.append(passed(hardware.listed(about), f"trouble in the past: {entry.symptom}{fixed}"))
            continue
        told = True
        tell = failed if entry.severity == "fail" else warned
        yield tell(
            hardware.listed(about),
            "is known for trouble after kexec",
            source=", ".join(entry.sources),
            reason=entry.symptom,
            remedy=entry.remedy,
        )
    yield from history
    if not told and not history:
        drivers = {(each.bus, each.driver) for each in devices}
        yield passed(
            "drivers",
            f"{len(devices)} devices, {len(drivers)} drivers, none is known for trouble",
            "/sys/bus",
        )


def _fields(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _file() -> Mapping[str, Any]:
    return tomllib.loads(resources.files("upgrade.check").joinpath("data/drivers.toml").read_text())


def _is_used(host: Host, module: str) -> bool:
    return int(host.read_or(f"/sys/module/{module}/refcnt", "0")) > 0


def _functions(host: Host) -> frozenset[str]:
    return frozenset(name for names in hardware.functions(host, PROBED).values() for name in names)
