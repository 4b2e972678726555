# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.netlock`` with the real nft, in a network of their own."""

import fcntl
import shutil
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from builders.network import in_network
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrade import netlock
from upgrade.process import PATH, CommandFailed

assert shutil.which("nft", path=PATH), "scripts/setup installs nftables"


def rules_now() -> str:
    """Return the table as nft shows it, empty if there is none."""
    done = subprocess.run(["/usr/sbin/nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return done.stdout


def check(text: str) -> str:
    """Return what nft has against some rules."""
    return subprocess.run(
        ["/usr/sbin/nft", "-c", "-f", "-"], input=text, capture_output=True, text=True
    ).stderr


@pytest.mark.parametrize(
    "ports",
    [
        {},
        {0: []},
        {0: [80]},
        {0: [80, 443], 1: [], 2: [1, 65535]},
        {0: [80], 1: [80]},
        {11: list(range(1, 2000))},
    ],
)
def test_nft_takes_the_rules(ports: dict[int, list[int]]) -> None:
    text = netlock.ruleset(ports)
    assert in_network(lambda: check(text)) == ""
    assert in_network(lambda: check(text.replace("drop", "drip") if "drop" in text else "x" + text)) != ""


@given(st.dictionaries(st.integers(0, 50), st.lists(st.integers(1, 65535), max_size=5), max_size=5))
@settings(max_examples=10, deadline=None)
def test_nft_takes_any_rules(ports: dict[int, list[int]]) -> None:
    text = netlock.ruleset(ports)
    assert in_network(lambda: check(text)) == ""


@given(st.dictionaries(st.integers(0, 50), st.lists(st.integers(1, 65535), max_size=5), max_size=5))
def test_every_port_is_in_both_directions_of_its_own_container(ports: dict[int, list[int]]) -> None:
    chains: dict[str, str] = {}
    for block in netlock.ruleset(ports).split("  chain ")[1:]:
        name, _, body = block.partition(" {")
        chains[name] = body
    hooks = {"input", "forward", "output", "postrouting"}
    assert chains.keys() == hooks | {f"{hook}-{n}" for hook in hooks for n in ports}
    for number, numbers in ports.items():
        listed = ", ".join(map(str, sorted(set(numbers))))
        for hook in hooks:
            assert f"jump {hook}-{number}\n" in chains[hook]
        for direction, match in (("input", "dport"), ("output", "sport")):
            assert (f"th {match} {{ {listed} }} drop" in chains[f"{direction}-{number}"]) == bool(numbers)


def test_the_addresses_of_containers_are_locked_wherever_packets_pass() -> None:
    text = netlock.ruleset({0: [8080], 1: []}, {0: ["10.88.0.2", "fd00::2"], 1: []})
    assert in_network(lambda: check(text)) == ""
    bodies = {block.partition(" {")[0]: block for block in text.split("  chain ")[1:]}
    assert "ip saddr 10.88.0.2 drop" in bodies["input-0"]
    assert "ip saddr 10.88.0.2 drop" in bodies["forward-0"]
    assert "ip daddr 10.88.0.2 drop" in bodies["forward-0"]
    assert "ip6 daddr fd00::2 drop" in bodies["postrouting-0"]
    assert not any("drop" in bodies[f"{hook}-1"] for hook in ("input", "forward", "output", "postrouting"))


def test_containers_that_share_a_bridge_are_locked_there_too() -> None:
    text = netlock.ruleset({0: [], 1: [], 2: []}, {0: ["10.88.0.2"], 1: ["10.88.0.3", "fd00::3"], 2: []})
    bridge = text.partition("table bridge seamless_upgrade {")[2]
    assert "ip saddr 10.88.0.2 drop" in bridge
    assert "ip6 daddr fd00::3 drop" in bridge
    assert "forward-2" not in bridge

    def work() -> list[str]:
        netlock.lock(text)
        netlock.lock(text)
        seen = [rules_now()]
        for number in (0, 1, 2):
            netlock.unlock(number, text)
            seen.append(rules_now())
        netlock.remove()
        return [*seen, rules_now()]

    try:
        seen = in_network(work)
    except RuntimeError as e:
        if "No such file" in str(e) or "not supported" in str(e):
            pytest.skip("this kernel has no tables for bridges")
        raise
    assert [each.count("drop") for each in seen] == [18, 12, 0, 0, 0]
    assert seen[-1] == ""


TCP_QUICKACK = 12  # include/uapi/linux/tcp.h


def reached(port: int) -> str:
    """Return what comes of connecting to a port: ``answered``, ``refused`` or ``silence``."""
    with socket.socket() as s:
        s.settimeout(0.15)
        try:
            s.connect(("127.0.0.1", port))
            return "answered"
        except TimeoutError:
            return "silence"
        except ConnectionRefusedError:
            return "refused"


def unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes of ours the other end has not acknowledged (SIOCOUTQ)."""
    found: int = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]
    return found


def both(ports: tuple[int, int]) -> tuple[str, str]:
    return reached(ports[0]), reached(ports[1])


def test_each_container_is_locked_and_unlocked_by_itself() -> None:
    def scenario() -> list[tuple[str, str]]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports = (server.getsockname()[1], 9)  # nobody listens on 9: the kernel answers with RST
            seen = [both(ports)]
            netlock.lock(netlock.ruleset({0: [ports[0]], 1: [ports[1]]}))
            seen.append(both(ports))
            netlock.unlock(1)
            seen.append(both(ports))
            netlock.unlock(0)
            seen.append(both(ports))
            return seen

    assert in_network(scenario) == [
        ("answered", "refused"),
        ("silence", "silence"),
        ("silence", "refused"),
        ("answered", "refused"),
    ]


def test_what_a_locked_socket_sends_is_dropped_and_others_are_not() -> None:
    def scenario() -> list[bool]:
        seen = []
        for locked in (True, False):
            with (
                socket.socket(type=socket.SOCK_DGRAM) as sender,
                socket.socket(type=socket.SOCK_DGRAM) as peer,
            ):
                sender.bind(("127.0.0.1", 0))
                peer.bind(("127.0.0.1", 0))
                peer.settimeout(0.15)
                own = sender.getsockname()[1]
                netlock.lock(netlock.ruleset({0: [own if locked else own ^ 1]}))
                with suppress(PermissionError):  # what the kernel tells the sender of a dropped datagram
                    sender.sendto(b"x", peer.getsockname())
                try:
                    seen.append(peer.recv(10) == b"x")
                except TimeoutError:
                    seen.append(False)
        return seen

    assert in_network(scenario) == [False, True]


def test_what_criu_sends_itself_passes() -> None:
    """It ends a connection in the peer's name (soccr/soccr.c, ``send_fin``), with the mark 0xC114."""

    def scenario() -> list[bool]:
        seen = []
        for mark in (0, 0xC114):
            with (
                socket.socket(type=socket.SOCK_DGRAM) as sender,
                socket.socket(type=socket.SOCK_DGRAM) as locked,
            ):
                locked.bind(("127.0.0.1", 0))
                locked.settimeout(0.15)
                netlock.lock(netlock.ruleset({0: [locked.getsockname()[1]]}))
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                sender.sendto(b"x", locked.getsockname())
                try:
                    seen.append(locked.recv(10) == b"x")
                except TimeoutError:
                    seen.append(False)
        return seen

    assert in_network(scenario) == [False, True]


def test_what_only_acknowledges_gets_out_and_nothing_else() -> None:
    """The client sends before the lock falls; it has its acknowledgement later, but no data, and no end."""

    def scenario() -> tuple[int, str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            locked, _ = server.accept()
            locked.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 0)  # acknowledge late
            client.sendall(b"x" * 3000)
            port = locked.getsockname()[1]
            netlock.lock(netlock.ruleset({0: [port]}))
            deadline = time.monotonic() + 5
            while unacknowledged(client) and time.monotonic() < deadline:
                time.sleep(0.01)
            locked.send(b"data")  # not before: it would acknowledge what has come, and be dropped with that
            locked.shutdown(socket.SHUT_WR)
            client.settimeout(0.3)
            try:
                got = client.recv(10).decode()
            except TimeoutError:
                got = "silence"
            return unacknowledged(client), got

    assert in_network(scenario) == (0, "silence")


@pytest.mark.parametrize(
    "door",
    [lambda port: ({0: [port]}, {}), lambda _: ({0: []}, {0: ["127.0.0.1"]})],
    ids=["port", "address"],
)
def test_a_closed_door_lets_in_nobody_and_keeps_nobody_from_talking(
    door: Callable[[int], tuple[dict[int, list[int]], dict[int, list[str]]]],
) -> None:
    def scenario() -> list[str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as client:
                inside, _ = server.accept()
                netlock.lock(netlock.door(*door(port)))
                client.sendall(b"there")
                inside.sendall(b"and back")
                talked = (inside.recv(10) + b" " + client.recv(10)).decode()
                seen = [talked, reached(port)]
                netlock.lock(netlock.ruleset({0: [port]}))  # the lock takes its place
                netlock.remove()
                return [*seen, reached(port)]

    assert in_network(scenario) == ["there and back", "silence", "answered"]


def test_a_door_without_listeners_is_no_obstacle() -> None:
    def scenario() -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            netlock.lock(netlock.door({0: []}, {0: []}))
            return reached(server.getsockname()[1])

    assert in_network(scenario) == "answered"


def test_a_lock_replaces_another_and_its_rules_can_be_loaded_again() -> None:
    def scenario() -> tuple[str, str]:
        netlock.lock(netlock.ruleset({0: [4711], 1: [4712]}))
        netlock.lock(netlock.ruleset({0: [4713]}))
        return rules_now(), str(rules_now().count("4713"))

    text, count = in_network(scenario)
    assert "4711" not in text
    assert count == "3"


def test_removing_leaves_nothing_of_ours_and_all_of_others() -> None:
    def scenario() -> list[str]:
        netlock.remove()
        subprocess.run(["/usr/sbin/nft", "add table inet other"], check=True)
        before = rules_now()
        netlock.lock(netlock.ruleset({0: [4711]}))
        netlock.remove()
        netlock.remove()
        return [before, rules_now()]

    before, after = in_network(scenario)
    assert "table inet other" in before
    assert after == before


@pytest.mark.parametrize("call", [lambda: netlock.lock("table {"), lambda: netlock.unlock(0)])
def test_what_nft_does_not_take_is_an_error(call: Callable[[], None]) -> None:
    def scenario() -> str:
        try:
            call()
        except CommandFailed as e:
            return e.message
        return ""

    assert "Error" in in_network(scenario) or "rror" in in_network(scenario)
