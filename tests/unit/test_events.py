# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.events``."""

import json
from pathlib import Path

import pytest

from upgrade.clock import Clock
from upgrade.events import Events


@pytest.fixture
def events(tmp_path: Path) -> Events:
    counter = iter(range(100, 1000, 100))
    return Events(tmp_path / "events.jsonl", Clock(lambda: next(counter)))


def told(events: Events) -> list[str]:
    """Return what a follower reads."""
    return [json.loads(line)["text"] for line in events.file.read_text().splitlines()]


def test_each_step_is_a_line(events: Events) -> None:
    with events.step("loading"):
        assert told(events) == ["loading"]
    events.say("two\nlines \u2028 and more")
    assert told(events) == ["loading", "two\nlines \u2028 and more"]
    assert events.file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_step_is_told_again_and_the_error_goes_on(
    events: Events, error: type[BaseException]
) -> None:
    with pytest.raises(error), events.step("outer"), events.step("inner"):
        raise error
    assert told(events) == ["outer", "inner", "failed: inner", "failed: outer"]


def test_warnings_are_told_and_kept(events: Events) -> None:
    events.warn("careful")
    events.warn("very")
    assert told(events) == ["warning: careful", "warning: very"]
    assert events.warnings == ["careful", "very"]


def test_stamps_are_the_counter(events: Events) -> None:
    assert events.stamp("freeze") == 100
    assert events.stamp("frozen") == 200
    assert events.stamps == {"freeze": 100, "frozen": 200}


def test_a_follower_may_remove_the_file(events: Events) -> None:
    events.say("one")
    events.file.unlink()
    events.say("two")
    assert told(events) == ["two"]
