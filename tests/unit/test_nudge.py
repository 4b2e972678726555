# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.nudge``: the message is taken apart again, and sent through a real kernel."""

import logging
import socket
import struct
from typing import Any

import pytest
from builders.network import in_network
from hypothesis import given
from hypothesis import strategies as st

from upgrade.restore import nudge
from upgrade.restore.nudge import checksum, unreachable

addresses = st.ip_addresses(v=4).map(str)
ports = st.integers(1, 65535)


def ones_complement_sum(data: bytes) -> int:
    """Return the sum of RFC 1071 word by word, with the carry brought round each time."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2], "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_the_standard() -> None:
    # RFC 1071, section 3: the sum of these words is ddf2
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@given(st.binary(max_size=200).map(lambda b: b[: len(b) // 2 * 2]))
def test_a_message_with_its_checksum_adds_up(data: bytes) -> None:
    assert ones_complement_sum(data + struct.pack("!H", checksum(data))) == 0xFFFF


@given(local=addresses, remote=addresses, own=ports, other=ports, expected=st.integers(0, 2**32 - 1))
def test_every_field_is_in_its_place(local: str, remote: str, own: int, other: int, expected: int) -> None:
    message = unreachable((local, own), (remote, other), expected)
    kind, code, _, unused = struct.unpack_from("!BBHI", message)
    assert (kind, code, unused) == (3, 1, 0)  # RFC 792: destination unreachable, host unreachable
    assert ones_complement_sum(message) == 0xFFFF
    quoted = message[8:]
    assert len(quoted) == 28  # RFC 792: the header and 64 bits of data
    version, tos, length, _, fragment, ttl, protocol, _, source, target = struct.unpack_from(
        "!BBHHHBBH4s4s", quoted
    )
    assert (version >> 4, (version & 15) * 4, tos, fragment, protocol) == (4, 20, 0, 0, 6)
    assert length >= 40
    assert ttl > 0
    assert ones_complement_sum(quoted[:20]) == 0xFFFF
    # It is the peer's packet that did not arrive: from the peer, to us.
    assert (socket.inet_ntoa(source), socket.inet_ntoa(target)) == (remote, local)
    assert struct.unpack_from("!HHI", quoted, 20) == (other, own, expected)


def test_sequence_numbers_wrap() -> None:
    ends = (("10.0.0.1", 1), ("10.0.0.2", 2))
    assert unreachable(*ends, 2**32 + 5) == unreachable(*ends, 5)


def received(connections: list[dict[str, Any]]) -> list[bytes]:
    """Return the ICMP messages that arrive when the peers of ``connections`` are nudged."""

    def scenario() -> list[bytes]:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as receiver:
            nudge.peers(connections)
            receiver.settimeout(0.2)
            found = []
            try:
                while True:
                    packet = receiver.recv(2000)
                    found.append(packet[(packet[0] & 15) * 4 :])
            except TimeoutError:
                return found

    return in_network(scenario)


def connection(remote: str, port: int) -> dict[str, Any]:
    return {"local": ["127.0.0.1", 80], "remote": [remote, port], "expected": 7}


def test_each_peer_gets_one_for_each_doubling() -> None:
    got = received([connection("127.0.0.1", 1000), connection("127.0.0.2", 1001)])
    first, second = (unreachable(("127.0.0.1", 80), (f"127.0.0.{n + 1}", 1000 + n), 7) for n in range(2))
    assert got == [first] * nudge.DOUBLINGS + [second] * nudge.DOUBLINGS


def test_no_connections_are_no_messages() -> None:
    assert received([]) == []


def test_a_peer_that_cannot_be_reached_keeps_no_other_from_being_nudged() -> None:
    got = received([connection("203.0.113.1", 1000), connection("127.0.0.1", 1001)])
    assert len(got) == nudge.DOUBLINGS


def test_without_the_right_to_it_is_only_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refuse)
    with caplog.at_level(logging.WARNING):
        nudge.peers([connection("127.0.0.1", 1000)])
    assert "Operation not permitted" in caplog.text + capfd.readouterr().err
