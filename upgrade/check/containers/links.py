# SPDX-License-Identifier: MIT
"""Network devices of containers with a network namespace (criu/net.c, ``dump_one_link``)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding
from upgrade.check.processes import Process, by_container
from upgrade.check.situation import Situation
from upgrade.process import run

# By link type what kinds CRIU knows
KINDS = {
    "ether": ("veth", "tun", "bridge", "macvlan"),
    "none": ("tun",),
    "sit": ("sit",),
    "loopback": ("",),
    "void": ("venet",),
}
# The kernel makes these in every namespace when their module is loaded; CRIU leaves them alone
FALLBACKS = ("gre0", "gretap0", "sit0")


def links(situation: Situation) -> Iterator[Finding]:
    """Look at the network devices of containers that have their own."""
    found = (
        Trouble(
            process,
            f"its network namespace has {name}, {what}",
            f"{process.directory}/net/dev",
            "CRIU cannot dump a network device of this kind",
            "remove the device, or leave the container out",
        )
        for process in _first(situation)
        for name, what in refused(_links(process))
    )
    yield from tell(found, "network devices", "CRIU knows those of all containers")


def _first(situation: Situation) -> Iterator[Process]:
    """Yield one process of each network namespace of each container."""
    for container, members in by_container(situation.processes):
        if not container.host_network:
            yield from {process.namespaces.get("net"): process for process in members}.values()


def _links(process: Process) -> list[dict[str, Any]]:
    if process.host.root != Path("/"):  # another machine's files
        return []
    command = ["nsenter", f"--net={process.directory}/ns/net", "ip", "-json", "-details", "link", "show"]
    found: list[dict[str, Any]] = json.loads(run(command).stdout or "[]")
    return found


def refused(found: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield name and kind of the devices (as ``ip -json -details link`` tells them) that CRIU cannot dump."""
    for link in found:
        name, family = link["ifname"], link.get("link_type", "")
        kind = link.get("linkinfo", {}).get("info_kind", "")
        if name not in FALLBACKS and kind not in KINDS.get(family, ()):
            yield name, f"a device of the kind {kind or family}" if kind else "a network card of the host"


CHECKS = (Check("containers.links", "CRIU knows their network devices", links),)
