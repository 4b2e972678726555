# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.sockets``: on the kernel's own tables, and on a recorded one."""

import os
import socket
from pathlib import Path

from builders.host import Machine
from builders.network import in_network

from upgrade.dump import sockets
from upgrade.host import Host

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 501 1 0000 100 0 0 10 0
   1: 0100007F:18EB 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 502 1 0000 20 4 30 10 -1
   2: 0100007F:18EB 0100007F:9C41 06 00000000:00000000 03:000001A1 00000000     0        0 0 3 0000
"""


def fd(machine: Machine, pid: int, number: int, target: str) -> None:
    directory = machine.root / "proc" / str(pid) / "fd"
    directory.mkdir(parents=True, exist_ok=True)
    os.symlink(target, directory / str(number))


def test_the_sockets_of_some_processes(machine: Machine) -> None:
    machine.file("/proc/net/tcp", TCP.rstrip("\n"))
    machine.file(
        "/proc/net/udp6", TCP.splitlines()[0] + "\n   9: " + "0" * 32 + ":0035 0:0 07 0:0 0:0 0 0 0 503 2 0 0"
    )
    for number, target in enumerate(["socket:[502]", "/dev/null", "socket:[999]", "anon_inode:[eventpoll]"]):
        fd(machine, 7, number, target)
    fd(machine, 8, 0, "socket:[503]")
    fd(machine, 8, 1, "socket:[502]")
    fd(machine, 9, 0, "socket:[501]")
    table = sockets.table(machine.host)
    found = sockets.of_pids(machine.host, [7, 8, 4711], table)
    assert [(s.table, s.port, s.is_established) for s in found] == [("tcp", 6379, True), ("udp6", 53, False)]
    assert sockets.ports(found) == (53, 6379)
    assert sockets.ports(sockets.of_pids(machine.host, [9], table)) == (6379,)
    assert sockets.ports([]) == ()


def test_the_kernel_s_own_tables_are_read() -> None:
    """Every kind of socket, bound and not, listening and connected, of this process and of a child."""

    def scenario() -> tuple[list[int], list[int], int, list[int], list[int]]:
        host = Host(Path("/"))
        keep = [socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)]
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        udp = socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        six = socket.socket(socket.AF_INET6)
        six.bind(("::1", 0))
        six.listen()
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))  # neither listening nor connected: in no table
        keep += [server, client, accepted, udp, six, bound]
        expected = sorted({s.getsockname()[1] for s in (server, client, udp, six)})
        found = sockets.of_pids(host, [os.getpid()], sockets.table(host))
        established = sum(s.is_established for s in found)
        child = os.fork()
        if child == 0:
            os.read(gate[0], 1)
            os._exit(0)
        for s in keep:
            s.close()
        of_child = sockets.of_pids(host, [child, 999999], sockets.table(host))
        of_us = sockets.of_pids(host, [os.getpid()], sockets.table(host))
        os.write(gate[1], b"x")
        os.waitpid(child, 0)
        return (
            expected,
            list(sockets.ports(found)),
            established,
            list(sockets.ports(of_child)),
            [s.port for s in of_us],
        )

    gate = os.pipe()
    expected, found, established, of_child, of_us = in_network(scenario)
    for descriptor in gate:
        os.close(descriptor)
    assert found == expected
    assert established == 2
    assert of_child == expected
    assert of_us == []
