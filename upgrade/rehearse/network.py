# SPDX-License-Identifier: MIT
"""The network between a guest and the probes that watch it from outside.

As root the guest gets a tap device in a network namespace of its own: the client outside is then a real TCP
stack, which notices a reset connection or a lost packet like any client would. Without root QEMU forwards
ports of 127.0.0.1, and its own TCP stack sits in between.
"""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from upgrade.process import run
from upgrade.rehearse.guest import ADDRESS, MAC, OUTSIDE_ADDRESS, PREFIX_LENGTH

TAP = "tap0"
SUBNET = "10.77.0.0/24"
NAMESPACE = re.compile(r"su-(?P<pid>\d+)-\d+")


@dataclass(frozen=True, slots=True)
class Network:
    """How a guest is connected. ``host`` and ``ports`` are what a client outside must use."""

    host: str
    netdev: str
    namespace: str | None = None
    ports: dict[int, int] = field(default_factory=dict)

    @property
    def prefix(self) -> list[str]:
        """What to put before a command so that it runs outside the guest, within reach of it."""
        return ["ip", "netns", "exec", self.namespace] if self.namespace else []

    @property
    def devices(self) -> list[str]:
        """QEMU's options."""
        return ["-netdev", f"{self.netdev},id=net0", "-device", f"virtio-net-pci,netdev=net0,mac={MAC}"]

    def outside_port(self, port: int) -> int:
        """Return the port to connect to for a port of the guest."""
        return self.ports.get(port, port)


@contextmanager
def connect(ports: tuple[int, ...], *, keep: bool = False) -> Iterator[Network]:
    """Provide the network of a machine; ``keep`` leaves it behind."""
    if os.geteuid() != 0:
        yield forwarded(ports)
        return
    remove_stale()
    name = new_namespace()
    try:
        prepare(name)
        yield Network(ADDRESS, f"tap,ifname={TAP},script=no,downscript=no", namespace=name)
    finally:
        if not keep:
            run(["ip", "netns", "del", name])


def new_namespace() -> str:
    """Add a network namespace and return its name; one process may have several machines."""
    taken = {line.split()[0] for line in run(["ip", "netns", "list"]).stdout.splitlines()}
    name = next(name for n in count() if (name := f"su-{os.getpid()}-{n}") not in taken)
    run(["ip", "netns", "add", name])
    return name


def prepare(namespace: str) -> None:
    """Make the tap device and the outside address."""
    ip = ["ip", "-n", namespace]
    run([*ip, "tuntap", "add", "dev", TAP, "mode", "tap"])
    run([*ip, "addr", "add", f"{OUTSIDE_ADDRESS}/{PREFIX_LENGTH}", "dev", TAP])
    run([*ip, "link", "set", "lo", "up"])
    run([*ip, "link", "set", TAP, "up"])


def forwarded(ports: tuple[int, ...]) -> Network:
    """Return the network that needs no privilege."""
    chosen = {port: free_port() for port in ports}
    rules = "".join(f",hostfwd=tcp:127.0.0.1:{outside}-:{port}" for port, outside in chosen.items())
    netdev = f"user,net={SUBNET},host={OUTSIDE_ADDRESS},dhcpstart={ADDRESS}{rules}"
    return Network("127.0.0.1", netdev, ports=chosen)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def remove_stale() -> None:
    """Remove the namespaces of runs that were killed, unless a machine still runs there."""
    for line in run(["ip", "netns", "list"]).stdout.splitlines():
        found = NAMESPACE.match(line)
        if found is None or os.path.exists(f"/proc/{found['pid']}"):
            continue
        if not run(["ip", "netns", "pids", found[0]]).stdout.strip():
            run(["ip", "netns", "del", found[0]], check=False)
