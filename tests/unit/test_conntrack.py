# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.conntrack`` with the kernel's own connection tracking, in a network of their own."""

from typing import Any

import pytest
from builders.network import in_network
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrade import conntrack

CLIENT, HOST, CONTAINER, SERVER = "192.0.2.7", "192.0.2.1", "10.88.0.2", "198.51.100.9"


def flow(original: list[Any], reply: list[Any], **other: Any) -> dict[str, Any]:
    """Return a connection as ``conntrack.of`` returns it."""
    return {
        "original": original,
        "reply": reply,
        "state": 3,
        "scales": [7, 9],
        "flags": [0x3, 0x3],
        "status": 0x6,
        "timeout_s": 400,
        "mark": 0,
        **other,
    }


PUBLISHED = flow([CLIENT, 40000, HOST, 8080], [CONTAINER, 80, CLIENT, 40000])
OUTGOING = flow([CONTAINER, 40001, SERVER, 443], [SERVER, 443, HOST, 40099], mark=5)
PLAIN = flow([CONTAINER, 40002, "10.88.0.3", 5432], ["10.88.0.3", 5432, CONTAINER, 40002])
BOTH_WAYS = flow([CONTAINER, 40003, HOST, 8080], ["10.88.0.3", 80, "10.88.0.1", 40003])
SIXTH = flow(["2001:db8::7", 40000, "2001:db8::1", 8080], ["fd00::2", 80, "2001:db8::7", 40000])
FOREIGN = flow([CLIENT, 40004, HOST, 22], [HOST, 22, CLIENT, 40004])


def carried(*flows: dict[str, Any], addresses: tuple[str, ...] = (CONTAINER, "fd00::2")) -> list[Any]:
    """Return what a kernel that knew nothing knows about some addresses once it was told of connections."""

    def work() -> list[Any]:
        before = conntrack.of(addresses)
        conntrack.put_back(flows)
        return [before, conntrack.of(addresses)]

    before, after = in_network(work)
    assert before == ()
    return list(after)


@pytest.mark.parametrize("one", [PUBLISHED, OUTGOING, PLAIN, BOTH_WAYS, SIXTH])
def test_a_connection_is_the_same_in_another_kernel(one: dict[str, Any]) -> None:
    (found,) = carried(one)
    for name in ("original", "reply", "state", "scales", "mark"):
        assert found[name] == one[name], name
    assert 0 < found["timeout_s"] <= one["timeout_s"]
    assert found["status"] & 0x6 == 0x6
    # what is translated the kernel says itself (IPS_SRC_NAT, IPS_DST_NAT)
    original, reply = one["original"], one["reply"]
    assert bool(found["status"] & 0x20) == (reply[:2] != original[2:])
    assert bool(found["status"] & 0x10) == (reply[2:] != original[:2])


def test_it_can_be_carried_again_and_again() -> None:
    once = carried(PUBLISHED, OUTGOING)
    twice = carried(*once)
    assert sorted(each["reply"] for each in twice) == sorted(each["reply"] for each in once)
    assert all(flags & conntrack.LIBERAL for each in twice for flags in each["flags"])


def test_only_those_of_the_addresses_are_taken() -> None:
    found = carried(PUBLISHED, FOREIGN, OUTGOING)
    assert sorted(each["original"][1] for each in found) == [40000, 40001]
    assert carried(FOREIGN) == []


@pytest.mark.parametrize(("state", "kept"), [(1, False), (3, True), (5, True), (7, False), (8, False)])
def test_connections_that_begin_or_have_ended_are_left(state: int, kept: bool) -> None:
    assert bool(carried({**PUBLISHED, "state": state})) == kept


def test_what_the_kernel_knows_already_is_left_alone() -> None:
    found = carried(PUBLISHED, PUBLISHED, {**PUBLISHED, "mark": 9}, OUTGOING)
    assert sorted((each["original"][1], each["mark"]) for each in found) == [(40000, 0), (40001, 5)]


def test_what_the_kernel_refuses_is_an_error() -> None:
    def work() -> str:
        try:
            conntrack.put_back([{**PUBLISHED, "state": 99}])
        except OSError as e:
            return str(e)
        return "nothing"

    assert "connection tracking" in in_network(work)


def test_without_addresses_nobody_is_asked() -> None:
    assert conntrack.of([]) == ()


@given(st.lists(st.integers(1024, 65535), min_size=1, max_size=400, unique=True))
@settings(max_examples=5, deadline=None)
def test_however_many_there_are_none_is_lost(ports: list[int]) -> None:
    flows = [flow([CLIENT, p, HOST, 8080], [CONTAINER, 80, CLIENT, p]) for p in ports]
    assert sorted(each["original"][1] for each in carried(*flows)) == sorted(ports)


def test_peers_are_called_by_what_they_see() -> None:
    came_in = {"local": [CONTAINER, 80], "remote": [CLIENT, 40000], "expected": 7}
    went_out = {"local": (CONTAINER, 40001), "remote": (SERVER, 443), "expected": 8}
    inside = {"local": ("127.0.0.1", 5), "remote": ("127.0.0.1", 6), "expected": 9}
    found = conntrack.from_outside([came_in, went_out, inside], [PUBLISHED, OUTGOING, FOREIGN])
    assert found == (
        {"local": (HOST, 8080), "remote": (CLIENT, 40000), "expected": 7},
        {"local": (HOST, 40099), "remote": (SERVER, 443), "expected": 8},
    )
