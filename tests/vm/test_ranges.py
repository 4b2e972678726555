# SPDX-License-Identifier: MIT
"""Hosts whose memory is not prepared: refused, with the remedy, and nothing touched."""

from collections.abc import Iterator

import pytest

from tests.vm.conftest import Guest, Guests
from upgrade.errors import ExitStatus


@pytest.fixture
def bare(guests: Guests) -> Iterator[Guest]:
    """Return a guest that was booted without any memmap=."""
    yield from guests.boot(["redis"], store_mib=0)


@pytest.fixture
def small(guests: Guests) -> Iterator[Guest]:
    """Return a guest whose range cannot hold Redis."""
    yield from guests.boot(["redis"], store_mib=16)


def test_without_memmap(bare: Guest) -> None:
    before = bare.traces()
    for verb in (["check"], ["run", "--yes"]):
        answer = bare.command(*verb, "--json", "--kernel", bare.target, "--cgroup", "/workload/redis")
        assert answer.status == ExitStatus.REFUSED, answer
        assert "memmap=" in answer.error["message"]
        assert "update-grub" in answer.error["hint"]
    assert bare.traces() == before
    assert bare.verify("redis") == {}


def test_range_too_small(small: Guest) -> None:
    before = small.traces()
    answer = small.upgrade("--cgroup", "/workload/redis")
    assert answer.status == ExitStatus.REFUSED, answer
    assert answer.error["subject"] == "memmap=16M!4G"
    assert "has 16 MiB" in answer.error["message"]
    assert "/workload/redis alone" in answer.error["message"]
    assert "larger" in answer.error["hint"]
    assert small.traces() == before
    assert small.verify("redis") == {}
