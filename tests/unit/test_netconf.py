# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.netconf``: with a recorded ``ip``, and with the real one in a network of its own."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.network import in_network
from builders.programs import Programs

from upgrade import netconf
from upgrade.host import Host
from upgrade.netconf import Link

MAC = "52:54:00:12:34:56"
LINK = Link(
    "eth0", MAC, 1400, "virtio_net", ("10.0.0.1/24 broadcast 10.0.0.255",), ("-4 default via 10.0.0.9",)
)

ADDRESSES: list[dict[str, Any]] = [
    {
        "ifname": "lo",
        "mtu": 65536,
        "address": "00:00:00:00:00:00",
        "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8, "scope": "host"}],
    },
    {
        "ifname": "eth0",
        "mtu": 1400,
        "address": MAC,
        "addr_info": [
            {
                "family": "inet",
                "local": "10.0.0.1",
                "prefixlen": 24,
                "broadcast": "10.0.0.255",
                "scope": "global",
            },
            {"family": "inet6", "local": "2001:db8::5", "prefixlen": 64, "scope": "global"},
            {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
        ],
    },
    {
        "ifname": "docker0",
        "mtu": 1500,
        "address": "02:42:00:00:00:01",
        "addr_info": [{"family": "inet", "local": "172.17.0.1", "prefixlen": 16, "scope": "global"}],
    },
    {},
]
ROUTES_4 = [
    {"dst": "default", "gateway": "10.0.0.9", "protocol": "dhcp", "metric": 100, "flags": []},
    {"dst": "10.0.0.0/24", "protocol": "kernel", "scope": "link", "prefsrc": "10.0.0.1", "flags": []},
    {"dst": "10.0.0.9", "protocol": "dhcp", "scope": "link", "metric": 100, "flags": []},
]
ROUTES_6 = [{"dst": "default", "gateway": "fe80::99", "metric": 1024, "flags": []}]


def card(machine: Machine, name: str, mac: str = MAC, module: str | None = "virtio_net") -> None:
    """Make a network card in ``/sys``."""
    machine.file(f"/sys/class/net/{name}/address", mac)
    device = machine.root / "sys" / "class" / "net" / name / "device"
    if module is not None:
        (device / "driver").mkdir(parents=True)
        (machine.root / "sys" / "module" / module).mkdir(parents=True, exist_ok=True)
        os.symlink(machine.root / "sys" / "module" / module, device / "driver" / "module")


def ip_says(programs: Programs, tmp_path: Path, four: Any = ROUTES_4, six: Any = ROUTES_6) -> None:
    for name, content in (("address", ADDRESSES), ("-4", four), ("-6", six)):
        (tmp_path / name).write_text(json.dumps(content))
    programs.add(
        "ip",
        f'case "$*" in *address*) cat {tmp_path}/address;; *-4*) cat {tmp_path}/-4;; *) cat {tmp_path}/-6;; esac',
    )


def test_a_snapshot_holds_the_cards_and_no_bridges(
    machine: Machine, programs: Programs, tmp_path: Path
) -> None:
    card(machine, "eth0")
    card(machine, "docker0", "02:42:00:00:00:01", None)
    ip_says(programs, tmp_path)
    assert netconf.snapshot(machine.host) == [
        Link(
            "eth0",
            MAC,
            1400,
            "virtio_net",
            ("10.0.0.1/24 broadcast 10.0.0.255", "2001:db8::5/64"),
            (
                "-4 10.0.0.9 metric 100",
                "-4 default via 10.0.0.9 metric 100",
                "-6 default via fe80::99 metric 1024",
            ),
        )
    ]


def test_no_routes_are_no_routes(machine: Machine, programs: Programs, tmp_path: Path) -> None:
    card(machine, "eth0")
    ip_says(programs, tmp_path, [], [])
    (tmp_path / "-6").write_text("")
    assert netconf.snapshot(machine.host)[0].routes == ()


def test_a_gateway_that_is_only_reached_on_link_stays_so(
    machine: Machine, programs: Programs, tmp_path: Path
) -> None:
    """As at hosters whose machines have a /32 address: without the word ``ip`` refuses the route."""
    card(machine, "eth0")
    ip_says(programs, tmp_path, [{"dst": "default", "gateway": "172.31.1.1", "flags": ["onlink"]}], [])
    assert netconf.snapshot(machine.host)[0].routes == ("-4 default via 172.31.1.1 onlink",)


def test_a_card_is_configured_under_its_old_name(machine: Machine, programs: Programs) -> None:
    card(machine, "eth0")
    programs.add("ip")
    programs.add("modprobe")
    assert netconf.restore(machine.host, [LINK], 1) == []
    assert programs.calls("modprobe") == [["modprobe", "--quiet", "virtio_net"]]
    assert programs.inputs("ip")[0].splitlines() == [
        "link set dev eth0 mtu 1400 up",
        "address replace 10.0.0.1/24 broadcast 10.0.0.255 dev eth0",
        "route replace default via 10.0.0.9 dev eth0",
    ]


def test_a_card_that_is_late_is_waited_for(
    machine: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.add("ip")
    programs.add("modprobe", "exit 1")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            card(machine, "eth1")  # the kernel's name, until udev gives it its own
        if len(slept) == 4:
            os.rename(machine.root / "sys/class/net/eth1", machine.root / "sys/class/net/eth0")

    monkeypatch.setattr(time, "sleep", sleep)
    assert netconf.restore(machine.host, [LINK], 5) == []
    assert len(slept) == 4
    assert "link set dev eth0 mtu 1400 up" in programs.inputs("ip")[0]


def test_a_card_that_nobody_renames_is_used_as_it_is(machine: Machine, programs: Programs) -> None:
    card(machine, "enp1s0")
    programs.add("ip")
    programs.add("modprobe")
    assert netconf.restore(machine.host, [LINK], 0.05) == []
    assert "address replace 10.0.0.1/24 broadcast 10.0.0.255 dev enp1s0" in programs.inputs("ip")[0]


def test_what_is_missing_is_told_and_the_rest_is_done(machine: Machine, programs: Programs) -> None:
    card(machine, "eth0")
    machine.file("/sys/class/net/br0/address", "52:54:00:00:00:99")
    programs.add("ip", "echo 'RTNETLINK answers: File exists' >&2; exit 1")
    programs.add("modprobe")
    bridge = Link("br0", "52:54:00:00:00:99", 1500, "bridge", ("10.9.0.1/24",), ())
    problems = netconf.restore(machine.host, [bridge, LINK], 0.05)
    assert problems == [
        "network card br0 (52:54:00:00:00:99) did not appear within 0.05 s",
        "eth0: RTNETLINK answers: File exists",
    ]


def in_real_network(machine: Machine, function: Callable[[], Any], *commands: str) -> Any:
    """Run ``function`` beside a real card ``eth0`` with the address :data:`MAC`."""

    def scenario() -> Any:
        for command in (f"link add eth0 address {MAC} type veth peer name far", "link set far up", *commands):
            subprocess.run(["/usr/sbin/ip", *command.split()], check=True)
        return function()

    card(machine, "eth0")
    return in_network(scenario)


def shown(*words: str) -> str:
    return subprocess.run(["/usr/sbin/ip", *words], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "commands",
    [
        ("address add 10.0.0.1/24 brd + dev eth0", "route add default via 10.0.0.9 metric 100"),
        (
            "address add 192.0.2.5/32 dev eth0",
            "route add 172.31.1.1 dev eth0",
            "route add default via 172.31.1.1",
        ),
        ("address add 192.0.2.5/32 dev eth0", "route add default via 172.31.1.1 dev eth0 onlink"),
        (
            "-6 address add 2001:db8::5/64 dev eth0 nodad",
            "-6 route add default via fe80::99 dev eth0 metric 1024",
        ),
        ("-6 address add 2001:db8::5/64 dev eth0 nodad", "-6 route add 2001:db8:1::/48 via 2001:db8::1"),
        (
            "address add 10.0.0.1/24 dev eth0",
            "address add 10.0.1.1/24 dev eth0",
            "route add 10.7.0.0/16 via 10.0.1.9",
        ),
    ],
)
def test_addresses_and_routes_survive_the_real_ip(
    machine: Machine, programs: Programs, commands: tuple[str, ...]
) -> None:
    programs.real("ip")
    programs.add("modprobe")

    def routes() -> list[str]:
        lines = (shown("route") + shown("-6", "route")).splitlines()
        return sorted(
            " ".join(line.split()).replace(" linkdown", "") for line in lines if "fe80::/64" not in line
        )

    def scenario() -> Any:
        host = Host(machine.root)
        (link,) = netconf.snapshot(host)
        before = routes(), sorted(link.addresses), link.mtu
        shown("address", "flush", "dev", "eth0")
        shown("link", "set", "eth0", "down")
        shown("link", "set", "eth0", "mtu", "1500")
        problems = netconf.restore(host, [link], 1)
        after = netconf.snapshot(host)[0]
        return before, problems, (routes(), sorted(after.addresses), after.mtu)

    before, problems, after = in_real_network(
        machine, scenario, "link set eth0 mtu 1400", "link set eth0 up", *commands
    )
    assert problems == []
    assert [r for r in before[0] if "default" in r or "via" in r]
    assert after == before
