# SPDX-License-Identifier: MIT
"""The host's addresses and routes, set up again in the new kernel before its network manager has come up.

An established connection can only be restored when its local address exists; waiting for the network manager would
be downtime. It finds its own settings in place later and keeps them.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upgrade.host import Host
from upgrade.process import run


@dataclass(frozen=True, slots=True)
class Link:
    """A network card with what is configured on it; ``routes`` are words for ``ip route``."""

    name: str
    mac: str
    mtu: int
    module: str
    addresses: tuple[str, ...]
    routes: tuple[str, ...]


def snapshot(host: Host) -> list[Link]:
    """Return the network cards that are up and have an address."""
    found = []
    for link in json.loads(run(["ip", "-json", "address", "show", "up"]).stdout):
        name = link.get("ifname", "")
        addresses = tuple(_address(a) for a in link.get("addr_info", []) if a.get("scope") == "global")
        if addresses and host.exists(f"/sys/class/net/{name}/device"):
            module = os.path.basename(
                os.path.realpath(host.path(f"/sys/class/net/{name}/device/driver/module"))
            )
            found.append(Link(name, link["address"], link["mtu"], module, addresses, _routes(name)))
    return found


def _address(info: Mapping[str, Any]) -> str:
    broadcast = f" broadcast {info['broadcast']}" if "broadcast" in info else ""
    return f"{info['local']}/{info['prefixlen']}{broadcast}"


def _routes(name: str) -> tuple[str, ...]:
    """Return the routes through a card, those without a gateway first."""
    found = []
    for family in ("-4", "-6"):
        for route in json.loads(run(["ip", family, "-json", "route", "show", "dev", name]).stdout or "[]"):
            if route.get("protocol") == "kernel":
                continue
            words = [route["dst"]]
            words += ["via", route["gateway"]] if "gateway" in route else []
            words += ["metric", str(route["metric"])] if "metric" in route else []
            words += ["onlink"] if "onlink" in route.get("flags", ()) else []
            found.append(" ".join([family, *words]))
    return tuple(sorted(found, key=lambda words: "via" in words))


def restore(host: Host, links: Sequence[Link], timeout_s: float) -> list[str]:
    """Bring cards up with their addresses; return what is missing, a line each."""
    for module in sorted({link.module for link in links}):
        run(["modprobe", "--quiet", module], check=False)
    problems = []
    deadline = time.monotonic() + timeout_s
    for link in links:
        name = _wait_for(host, link, deadline)
        if name is None:
            problems.append(f"network card {link.name} ({link.mac}) did not appear within {timeout_s} s")
            continue
        problems += [f"{link.name}: {line}" for line in _configure(link, name)]
    return problems


def _wait_for(host: Host, link: Link, deadline: float) -> str | None:
    """Return the card's present name, once udev has named it as before, or when time is up."""
    while True:
        name = next((n for n in host.list("/sys/class/net") if _is(host, n, link)), None)
        if (
            name is not None and (name == link.name or _is_settled(host, name))
        ) or time.monotonic() > deadline:
            return name
        time.sleep(0.01)


def _is_settled(host: Host, name: str) -> bool:
    """Tell whether udev is done with a card: it will get no other name."""
    return host.exists(f"/run/udev/data/n{host.read_or(f'/sys/class/net/{name}/ifindex', '')}")


def _is(host: Host, name: str, link: Link) -> bool:
    mac = host.read_or(f"/sys/class/net/{name}/address", "")
    return mac == link.mac and host.exists(f"/sys/class/net/{name}/device")


def _without_detection(address: str) -> str:
    """Return an address; one of IPv6 is usable at once, since it was ours a moment ago."""
    return f"{address} nodad" if ":" in address else address


def _configure(link: Link, name: str) -> list[str]:
    batch = [f"link set dev {name} mtu {link.mtu} up"]
    batch += [f"address replace {_without_detection(address)} dev {name}" for address in link.addresses]
    batch += [
        f"route replace {words.removeprefix('-4 ').removeprefix('-6 ')} dev {name}" for words in link.routes
    ]
    done = run(["ip", "-force", "-batch", "-"], input="\n".join(batch) + "\n", check=False)
    return done.stderr.strip().splitlines() if done.returncode != 0 else []
