# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.session``: a record comes back as it was written, or is not believed."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders.session import container, dumped, session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memfs import checksums
from memfs.checksums import Sum
from memfs.ranges import Range
from upgrade.clock import Tie
from upgrade.engines.base import Container
from upgrade.netconf import Link
from upgrade.session import FORMAT, Dumped, FrameRecord, Session, SessionDamaged

FILE = "session.json"
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

texts = st.text(max_size=12)  # lone surrogates included: names of files are bytes
numbers = st.integers(0, 2**64)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
containers = st.builds(
    Container,
    name=texts,
    engine=texts,
    cgroup=texts,
    root_pid=numbers,
    data=st.dictionaries(texts, json_values, max_size=3),
)
sums = st.dictionaries(texts, st.builds(Sum, numbers, texts), max_size=3)
peers = st.lists(st.dictionaries(texts, json_values, max_size=3), max_size=2).map(tuple)
dumps = st.builds(
    Dumped,
    container=containers,
    directory=texts,
    tasks=numbers,
    vdso_action=texts,
    frozen_at=numbers,
    peers=peers,
    checksums=sums,
    in_place=st.booleans(),
    frame_files=st.lists(texts, max_size=2).map(tuple),
)
ranges = st.builds(Range, numbers, numbers)
names = st.lists(texts, max_size=3).map(tuple)
links = st.builds(Link, name=texts, mac=texts, mtu=numbers, module=texts, addresses=names, routes=names)
sessions = st.builds(
    Session,
    livepatches_before=names,
    lock=texts,
    links=st.lists(links, max_size=2).map(tuple),
    containers=st.lists(dumps, max_size=2).map(tuple),
    stamps=st.dictionaries(texts, numbers, max_size=3),
    ties=st.lists(st.builds(Tie, numbers, numbers, numbers, numbers), max_size=2).map(tuple),
    vdso=st.dictionaries(texts, json_values, max_size=2),
    warnings=names,
    frames=st.none()
    | st.builds(FrameRecord, st.lists(ranges, max_size=2).map(tuple), *[st.builds(Sum, numbers, texts)] * 2),
    format=st.just(FORMAT),
)


@given(sessions)
@relaxed
def test_every_record_comes_back(tmp_path: Path, record: Session) -> None:
    record.save(tmp_path / FILE)
    assert Session.load(tmp_path / FILE) == record


def test_a_whole_record_comes_back_and_can_be_replaced(tmp_path: Path) -> None:
    record = session([dumped(), dumped(container("/b", "runc", bundle="/b", devices=[]), 1)])
    record.save(tmp_path / FILE)
    found = Session.load(tmp_path / FILE)
    assert found == record
    assert found.containers[1].container.data["bundle"] == "/b"
    later = replace(found, stamps={**found.stamps, "jumped": 7})
    later.save(tmp_path / FILE)
    assert Session.load(tmp_path / FILE) == later
    assert os.listdir(tmp_path) == [FILE]


@pytest.mark.parametrize("change", [lambda b: b ^ 1, lambda b: b ^ 0x80, lambda b: 0])
def test_no_wrong_byte_is_believed(tmp_path: Path, change: Callable[[int], int]) -> None:
    session(vdso={}, lock="").save(tmp_path / FILE)
    whole = (tmp_path / FILE).read_bytes()
    for at, byte in enumerate(whole):
        if change(byte) == byte:
            continue
        (tmp_path / FILE).write_bytes(whole[:at] + bytes([change(byte)]) + whole[at + 1 :])
        with pytest.raises(SessionDamaged):
            Session.load(tmp_path / FILE)


def test_no_torn_record_is_believed(tmp_path: Path) -> None:
    session().save(tmp_path / FILE)
    whole = (tmp_path / FILE).read_bytes()
    for length in range(len(whole) - 1):  # the last byte is a newline that nobody needs
        (tmp_path / FILE).write_bytes(whole[:length])
        with pytest.raises(SessionDamaged):
            Session.load(tmp_path / FILE)


@given(at=st.integers(0, 10_000), cut=st.integers(0, 50), patch=st.binary(max_size=20))
@relaxed
def test_whatever_happened_to_it_it_is_the_same_or_not_believed(
    tmp_path: Path, at: int, cut: int, patch: bytes
) -> None:
    record = session()
    record.save(tmp_path / FILE)
    whole = (tmp_path / FILE).read_bytes()
    at %= len(whole)
    (tmp_path / FILE).write_bytes(whole[:at] + patch + whole[at + cut :])
    with suppress(SessionDamaged):
        assert Session.load(tmp_path / FILE) == record


def test_a_missing_record_and_a_directory_are_not_believed(tmp_path: Path) -> None:
    with pytest.raises(SessionDamaged, match="No such file"):
        Session.load(tmp_path / FILE)
    with pytest.raises(SessionDamaged, match="Is a directory"):
        Session.load(tmp_path)


def sealed(file: Path, data: Any) -> Path:
    """Write a record with the right checksum, as another version of us could have."""
    text = json.dumps(data)
    file.write_text(f"{checksums.of_bytes(text.encode())}\n{text}\n")
    return file


def test_a_record_of_another_version_is_not_believed(tmp_path: Path) -> None:
    others: list[Any] = [{}, {"format": 2}, {"format": None}, {"format": 1}, {"format": 1, "colour": "blue"}]
    for data in [*others, [], None, 7, "text"]:
        with pytest.raises(SessionDamaged):
            Session.load(sealed(tmp_path / FILE, data))


def test_a_record_with_other_members_is_not_believed(tmp_path: Path) -> None:
    session().save(tmp_path / FILE)
    data = json.loads((tmp_path / FILE).read_text().partition("\n")[2])
    missing = [
        {name: value for name, value in data.items() if name != left_out} for left_out in ("id", "ties")
    ]
    other = [{"of": "another version"}]
    for changed in [
        *missing,
        *({**data, name: other} for name in ("containers", "ties", "links")),
        {**data, "x": 1},
    ]:
        with pytest.raises(SessionDamaged):
            Session.load(sealed(tmp_path / FILE, changed))


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    session().save(tmp_path / FILE)
    with pytest.raises(TypeError):
        session(vdso={"x": object()}).save(tmp_path / FILE)
    assert Session.load(tmp_path / FILE) == session()
