# SPDX-License-Identifier: MIT
"""The network lock: packets to and from preserved sockets are dropped.

Sockets of the host's network namespace are locked by their ports; those of containers that the host passes packets on
to by the containers' addresses, and by the ports of the host that lead there: without the engine's rules, which are
not there yet, such a packet would be answered by the host itself. What containers send each other over a bridge passes
none of the host's hooks but those of the bridge: a second table, if more than one container has an address.

From before the dump until the restored sockets exist, in both kernels: a packet to a port without its socket would
be answered with RST. One table of nftables, a chain for each container, so that each is unlocked by itself.
CRIU's own lock (one rule a connection, gone with the kernel) is left out.

While CRIU restores a connection whose other end has ended its direction, it sends itself the end (FIN) in the peer's
name, with a mark (soccr/soccr.c, ``send_fin``). That has to pass, or the connection is not closed by halves any more
(ESTABLISHED instead of CLOSE_WAIT, FIN_WAIT1 instead of FIN_WAIT2) and the two ends disagree about it.

Before the freeze a *door* is closed for a moment: no new connection can be begun, everything else passes.
"""

from collections.abc import Mapping, Sequence

from upgrade.process import run

TABLE = "inet seamless_upgrade"

BRIDGE_TABLE = "bridge seamless_upgrade"

# include/uapi/linux/netfilter_ipv4.h: before connection tracking (NF_IP_PRI_RAW)
_PRIORITY = -300


# soccr/soccr.h, SOCCR_MARK: what CRIU sends itself. Nobody else may set marks (CAP_NET_ADMIN).
MARK = 0xC114

# What only acknowledges. The tasks stand still, but what the kernel has taken for them it acknowledges up to 200 ms
# later: if that is lost, the peer's TCP neither goes on nor listens to the nudge after the restore. A packet with data
# that is as short and not pushed (PSH) would pass too; nobody sends such.
_ACKNOWLEDGMENT = "tcp flags == ack meta length <= 100 accept"

# The first packet of a connection
_SYN = "tcp flags & (fin | syn | rst | ack) == syn"


# Each hook, which end of a connection is the local port there, and which the address of a container. What goes to a
# container has its address in postrouting only: what the host sends itself is given another destination in output.
_HOOKS = (
    ("input", "dport", ("saddr",)),
    ("forward", "", ("saddr", "daddr")),
    ("output", "sport", ()),
    ("postrouting", "", ("daddr",)),
)


def ruleset(ports: Mapping[int, Sequence[int]], addresses: Mapping[int, Sequence[str]] | None = None) -> str:
    """Return the rules for the local TCP and UDP ports of each container, and its addresses, by its number."""
    addresses = addresses or {}
    chains = []
    for direction, match, ends in _HOOKS:
        jumps = "".join(f"    jump {direction}-{number}\n" for number in ports)
        head = f"    type filter hook {direction} priority {_PRIORITY}; policy accept;\n"
        for number, numbers in ports.items():
            listed = ", ".join(map(str, sorted(set(numbers))))
            drop = (
                f"    meta mark != {MARK:#x} meta l4proto {{ tcp, udp }} th {match} {{ {listed} }} drop\n"
                if listed and match
                else ""
            )
            if drop and direction == "output":
                drop = f"    tcp sport {{ {listed} }} {_ACKNOWLEDGMENT}\n{drop}"
            if direction == "forward":
                drop += "".join(
                    f"    {_family(address)} saddr {address} {_ACKNOWLEDGMENT}\n"
                    for address in sorted(set(addresses.get(number, ())))
                )
            drop += _drops(addresses.get(number, ()), ends)
            chains.append(f"  chain {direction}-{number} {{\n{drop}  }}\n")
        chains.append(f"  chain {direction} {{\n{head}{jumps}  }}\n")
    return _table(TABLE, chains) + _bridge(addresses)


def door(ports: Mapping[int, Sequence[int]], addresses: Mapping[int, Sequence[str]]) -> str:
    """Return rules that let nobody begin a connection with some ports of the host, or with containers' addresses."""
    at_host = sorted({port for found in ports.values() for port in found})
    listed = ", ".join(map(str, at_host))
    incoming = f"    tcp dport {{ {listed} }} {_SYN} drop\n" if at_host else ""
    passed = "".join(
        f"    {_family(address)} daddr {address} {_SYN} drop\n"
        for address in sorted({each for found in addresses.values() for each in found})
    )
    chains = [
        f"  chain {hook} {{\n    type filter hook {hook} priority {_PRIORITY}; policy accept;\n{rules}  }}\n"
        for hook, rules in (("input", incoming), ("postrouting", passed))
    ]
    return _table(TABLE, chains)


def _bridge(addresses: Mapping[int, Sequence[str]]) -> str:
    inside = [number for number in addresses if addresses[number]]
    if len(inside) < 2:
        return ""
    chains = [f"  chain forward-{n} {{\n{_drops(addresses[n], ('saddr', 'daddr'))}  }}\n" for n in inside]
    jumps = "".join(f"    jump forward-{number}\n" for number in inside)
    head = f"    type filter hook forward priority {_PRIORITY}; policy accept;\n"
    return _table(BRIDGE_TABLE, [*chains, f"  chain forward {{\n{head}{jumps}  }}\n"])


def _drops(addresses: Sequence[str], ends: Sequence[str]) -> str:
    return "".join(
        f"    {_family(address)} {end} {address} drop\n" for address in sorted(set(addresses)) for end in ends
    )


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _table(name: str, chains: Sequence[str]) -> str:
    # Emptied first, in the same transaction: a lock replaces another without a gap.
    return f"table {name}\ndelete table {name}\ntable {name} {{\n{''.join(chains)}}}\n"


def lock(rules: str) -> None:
    """Put the rules in force, all at once."""
    run(["nft", "-f", "-"], input=rules)


def unlock(number: int, rules: str = "") -> None:
    """Let one container's packets through; ``rules`` are those that are in force."""
    flush = "".join(f"flush chain {TABLE} {direction}-{number}\n" for direction, _, _ in _HOOKS)
    bridge = rules.partition(f"table {BRIDGE_TABLE} {{")[2]
    if f"chain forward-{number} {{" in bridge:
        flush += f"flush chain {BRIDGE_TABLE} forward-{number}\n"
    run(["nft", "-f", "-"], input=flush)


def remove() -> None:
    """Remove the tables; nothing happens if there are none."""
    tables = [TABLE]
    if BRIDGE_TABLE in run(["nft", "list", "tables"], check=False).stdout:
        tables.append(BRIDGE_TABLE)
    run(["nft", "-f", "-"], input="".join(f"table {table}\ndelete table {table}\n" for table in tables))
