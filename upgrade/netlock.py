# SPDX-License-Identifier: MIT
"""The network lock: packets to and from preserved sockets of the host's network namespace are dropped.

From before the dump until the restored sockets exist, in both kernels: a packet to a port without its socket would
be answered with RST. One table of nftables, a chain for each container, so that each is unlocked by itself.
CRIU's own lock (one rule a connection, gone with the kernel) is left out.
"""

from collections.abc import Mapping, Sequence

from upgrade.process import run

TABLE = "inet seamless_upgrade"

# include/uapi/linux/netfilter_ipv4.h: before connection tracking (NF_IP_PRI_RAW)
_PRIORITY = -300


def ruleset(ports: Mapping[int, Sequence[int]]) -> str:
    """Return the rules for the local TCP and UDP ports of each container, by the container's number."""
    chains = []
    for direction, match in (("input", "dport"), ("output", "sport")):
        jumps = "".join(f"    jump {direction}-{number}\n" for number in ports)
        head = f"    type filter hook {direction} priority {_PRIORITY}; policy accept;\n"
        for number, numbers in ports.items():
            listed = ", ".join(map(str, sorted(set(numbers))))
            drop = f"    meta l4proto {{ tcp, udp }} th {match} {{ {listed} }} drop\n" if listed else ""
            chains.append(f"  chain {direction}-{number} {{\n{drop}  }}\n")
        chains.append(f"  chain {direction} {{\n{head}{jumps}  }}\n")
    # Emptied first, in the same transaction: a lock replaces another without a gap.
    return f"table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{''.join(chains)}}}\n"


def lock(rules: str) -> None:
    """Put the rules in force, all at once."""
    run(["nft", "-f", "-"], input=rules)


def unlock(number: int) -> None:
    """Let one container's packets through."""
    flush = "".join(f"flush chain {TABLE} {direction}-{number}\n" for direction in ("input", "output"))
    run(["nft", "-f", "-"], input=flush)


def remove() -> None:
    """Remove the table; nothing happens if there is none."""
    run(["nft", "-f", "-"], input=f"table {TABLE}\ndelete table {TABLE}\n")
