# SPDX-License-Identifier: MIT
"""Local addresses of connections: read as the kernel prints them, refused where they would be missing."""

import socket

import pytest

from upgrade import plan
from upgrade.dump import sockets
from upgrade.dump.sockets import Socket
from upgrade.engines import Container
from upgrade.errors import Refusal
from upgrade.host import Host
from upgrade.netconf import Link

REDIS = Container("/workload/redis", "cgroup", "/workload/redis", 7, host_pids=True, host_network=True)
ETHERNET = Link("eth0", "52:54:00:00:00:01", 1500, "virtio_net", ("10.77.0.2/24 broadcast 10.77.0.255",), ())


@pytest.mark.parametrize(
    ("table", "printed", "address"),
    [
        ("tcp", "0100007F", "127.0.0.1"),
        ("tcp", "02004D0A", "10.77.0.2"),
        ("tcp6", "00000000000000000000000001000000", "::1"),
        ("tcp6", "0000000000000000FFFF000002004D0A", "10.77.0.2"),
        ("tcp6", "B80D0120000000000000000001000000", "2001:db8::1"),
    ],
)
def test_the_kernel_s_notation(table: str, printed: str, address: str) -> None:
    assert str(Socket(table, printed, 6379, sockets.TCP_ESTABLISHED).ip) == address


def test_a_real_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [s for s in sockets.table(Host()).values() if s.port == port]
    assert [str(s.ip) for s in found] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("printed", "state", "refused"),
    [
        ("02004D0A", sockets.TCP_ESTABLISHED, False),  # 10.77.0.2: on the card
        ("0100007F", sockets.TCP_ESTABLISHED, False),  # loopback
        ("0100A8C0", sockets.TCP_ESTABLISHED, True),  # 192.168.0.1: on a bridge
        ("0100A8C0", 10, False),  # listening: can wait for its address
    ],
)
def test_addresses_of_no_card(
    monkeypatch: pytest.MonkeyPatch, printed: str, state: int, refused: bool
) -> None:
    monkeypatch.setattr("upgrade.netconf.snapshot", lambda _host: [ETHERNET])
    monkeypatch.setattr("upgrade.cgroup.pids", lambda _host, _cgroup: [7])
    held = Socket("tcp", printed, 6379, state)
    monkeypatch.setattr("upgrade.dump.sockets.table", lambda _host: {1: held})
    monkeypatch.setattr("upgrade.dump.sockets.of_pids", lambda _host, _pids, table: list(table.values()))
    if not refused:
        plan.refuse_unknown_addresses(Host(), [REDIS])
        return
    with pytest.raises(Refusal) as caught:
        plan.refuse_unknown_addresses(Host(), [REDIS])
    assert caught.value.subject == "/workload/redis"
    assert "192.168.0.1" in caught.value.message
    assert caught.value.hint
