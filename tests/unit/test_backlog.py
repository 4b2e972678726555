# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.backlog``: with sockets of a real kernel, in a container that is this process."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.network import in_network

from upgrade import cgroup
from upgrade.dump import backlog
from upgrade.dump.backlog import Doors
from upgrade.engines.base import Container
from upgrade.errors import UpgradeError
from upgrade.host import Host

HOST = Host(Path("/"))


def container(*, host_network: bool = True) -> Container:
    return Container("/box", "cgroup", "/box", os.getpid(), host_pids=True, host_network=host_network)


def in_container(monkeypatch: pytest.MonkeyPatch, scenario: Callable[[list[str]], Any]) -> Any:
    """Run in a network of its own; the argument gets what is done to the cgroup."""
    done: list[str] = []
    monkeypatch.setattr(cgroup, "pids", lambda *_: [os.getpid()])
    monkeypatch.setattr(cgroup, "freeze", lambda *_: done.append("freeze"))
    monkeypatch.setattr(cgroup, "thaw", lambda *_: done.append("thaw"))
    monkeypatch.setattr(backlog, "PAUSE_S", 0.001)
    return in_network(lambda: scenario(done))


@pytest.mark.parametrize("host_network", [True, False])
def test_who_waits_at_which_port(monkeypatch: pytest.MonkeyPatch, host_network: bool) -> None:
    def scenario(_: list[str]) -> Any:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [server.getsockname()[1] for server in servers]
        clients = [socket.create_connection(("127.0.0.1", port)) for port in (ports[1], ports[1], ports[0])]
        accepted, _address = servers[0].accept()
        clients[0].sendall(b"data")
        doors = Doors(HOST, [container(host_network=host_network)])
        seen = doors.look()
        accepted.close()
        at_host = {0: tuple(sorted(ports))} if host_network else {}
        return seen.waiting == {0: {ports[1]: 2}}, doors.ports == at_host, seen.arriving

    assert in_container(monkeypatch, scenario) == (True, True, 0)


def test_a_connection_that_is_half_made_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(_: list[str]) -> Any:
        from upgrade.process import run

        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            # the answer of the server never comes, so that the handshake does not come to its end
            rules = f"table inet t {{\nchain c {{\ntype filter hook input priority 0\ntcp sport {port} drop\n}}\n}}\n"
            run(["nft", "-f", "-"], input=rules)
            with socket.socket() as client:
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
                return Doors(HOST, [container()]).look().arriving

    assert in_container(monkeypatch, scenario) == 1


def test_nothing_is_thawed_if_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(done: list[str]) -> Any:
        with socket.create_server(("127.0.0.1", 0)):
            doors = Doors(HOST, [container()])
            doors.wait()
            return doors.settle(1.0), done

    assert in_container(monkeypatch, scenario) == (0, [])


def test_the_program_is_let_run_until_it_has_accepted_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(done: list[str]) -> Any:
        server = socket.create_server(("127.0.0.1", 0))
        clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
        accepted = []

        def thaw(*_: object) -> None:
            done.append("thaw")
            accepted.append(server.accept())

        monkeypatch.setattr(cgroup, "thaw", thaw)
        return Doors(HOST, [container()]).settle(1.0), done, len(accepted), len(clients)

    assert in_container(monkeypatch, scenario) == (3, ["thaw", "freeze"] * 3, 3, 3)


def test_a_program_that_does_not_accept_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(done: list[str]) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)):
                try:
                    Doors(HOST, [container()]).settle(1.0)
                except UpgradeError as e:
                    return e.subject, e.message.replace(str(port), "PORT"), done[-1]
        return None

    subject, message, last = in_container(monkeypatch, scenario)
    assert subject == "/box"
    assert message.startswith("1 connections wait for accept(2) at port PORT;")
    assert last == "freeze"


def test_what_was_sent_before_the_connection_was_closed_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is counted while the client does not read, and not any more when it has all; nor is what a process holds."""

    def scenario(_: list[str]) -> Any:
        monkeypatch.setattr(backlog, "DRAIN_S", 0.02)
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(server.getsockname())
            accepted, _address = server.accept()
            doors = Doors(HOST, [container()])
            accepted.setblocking(False)
            sent = accepted.send(bytes(1 << 20))
            held = doors.drain()
            accepted.close()
            closed = doors.drain()
            received = 0
            while data := client.recv(1 << 16):
                received += len(data)
            return held, closed, received == sent, doors.drain()

    assert in_container(monkeypatch, scenario) == (0, 1, True, 0)
