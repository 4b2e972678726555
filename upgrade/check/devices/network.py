# SPDX-License-Identifier: MIT
"""What the host's own traffic goes through, and when that comes back.

The restore brings network cards up with their addresses, in the background and before any network manager
(``upgrade.netconf``). Everything that is made of cards, or out of nothing, waits for the network manager.
"""

from collections.abc import Iterator

from upgrade.check.model import Finding, passed, warned
from upgrade.check.situation import Situation
from upgrade.host import Host

_NET = "/sys/class/net"
# include/uapi/linux/if_arp.h: what a link without a card may be
_TUNNELS = {768: "ipip", 769: "ip6tnl", 776: "sit", 778: "gre", 823: "ip6gre", 512: "ppp"}
_MADE = ("bond", "team", "vlan", "macvlan", "ipvlan", "wireguard", "wwan")


def network(situation: Situation) -> Iterator[Finding]:
    """Look for links other than network cards that carry the host's traffic."""
    host = situation.host
    links = host.list(_NET)
    uplinks = _uplinks(host)
    late = []
    for name in links:
        kind = _kind(host, name)
        if kind and (kind != "bridge" or name in uplinks or _has_card(host, name)):
            late.append(f"{name} ({kind}{', the way out' if name in uplinks else ''})")
    cards = [name for name in links if _is_card(host, name) and not _kind(host, name)]
    if late:
        yield warned(
            ", ".join(late),
            "not plain network cards",
            source=_NET,
            reason="the restore brings up network cards only; these come back with the network manager, after the "
            "containers, so connections through them stand still for longer",
            remedy="set keepalives and time-outs of the peers accordingly, or put the address on the card itself",
        )
    else:
        yield passed(
            ", ".join(cards) or "network",
            "plain network cards, brought up by the restore" if cards else "no network card",
            _NET,
        )


def _kind(host: Host, name: str) -> str:
    """Return what a link is if it comes back late; empty for cards, and for what engines make for containers."""
    base = f"{_NET}/{name}"
    lines = dict(line.partition("=")[::2] for line in host.read_or(f"{base}/uevent", "").splitlines())
    kind = lines.get("DEVTYPE", "")
    if kind == "wlan" or host.exists(f"{base}/wireless"):
        return "wifi"
    if kind in _MADE or kind == "bridge":
        return kind
    if host.exists(f"{base}/tun_flags") and not host.exists(f"{base}/master"):
        return "tunnel"
    return "" if host.exists(f"{base}/device") else _TUNNELS.get(int(host.read_or(f"{base}/type", "1")), "")


def _is_card(host: Host, name: str) -> bool:
    return host.exists(f"{_NET}/{name}/device")


def _has_card(host: Host, bridge: str) -> bool:
    return any(_is_card(host, port) for port in host.list(f"{_NET}/{bridge}/brif"))


def _uplinks(host: Host) -> set[str]:
    """Return the links of the default routes (``/proc/net/route``, ``/proc/net/ipv6_route``)."""
    fourth = [line.split() for line in host.read_or("/proc/net/route", "").splitlines()[1:]]
    sixth = [line.split() for line in host.read_or("/proc/net/ipv6_route", "").splitlines()]
    return {words[0] for words in fourth if words[1] == words[7] == "0" * 8} | {
        words[-1] for words in sixth if words[1] == "00" and words[-1] != "lo"
    }
