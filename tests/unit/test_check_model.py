# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.check.model`` and of the JSON schema of what ``check`` answers."""

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from builders.checks import complete, result

from upgrade.check.model import Finding, Status, failed, passed, skipped, warned

SCHEMA = json.loads((files("upgrade.check") / "schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

FOUND = (
    passed("x", "0", "/sys/x"),
    warned("x", "1", source="/sys/x", reason="slow", remedy="wait"),
    failed("x", "2", source="/sys/x", reason="never", remedy="end it"),
    skipped("x", "?", reason="needs root"),
)


def answer(*found: Finding) -> dict[str, Any]:
    """Return an answer of ``check --json`` on a host that is ready."""
    return {
        "schema_version": 1,
        "ready": True,
        "exit_status": 0,
        "kernel_from": "6.12.48",
        "kernel_to": None,
        "kernel": None,
        "kernel_named": False,
        "results": [result(each).to_json() for each in found],
        "durations_ns": {"kexec.fake": 1000},
    }


def test_results_fit_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    data = answer(*FOUND)
    VALIDATOR.validate(data)
    assert [each["status"] for each in data["results"]] == [status.value for status in Status]
    assert data["results"][1] == {
        "id": "kexec.fake",
        "status": "warn",
        "subject": "x",
        "seen": "1",
        "source": "/sys/x",
        "reason": "slow",
        "remedy": "wait",
    }


ERROR = {"message": "m", "subject": None, "hint": None, "exit_status": 3}
BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda d: d.update(schema_version=2),
    "ready with a status": lambda d: d.update(exit_status=3),
    "ready with an error": lambda d: d.update(error=ERROR),
    "refused without an error": lambda d: d.update(ready=False, exit_status=3),
    "refused with status 0": lambda d: d.update(ready=False, error=ERROR),
    "half a plan": lambda d: d.update(containers=[{"name": "x", "engine": "runc", "cgroup": "/x", "pid": 1}]),
    "a new status": lambda d: d["results"][0].update(status="maybe"),
    "an id without family": lambda d: d["results"][0].update(id="loaded"),
    "a warning without reason": lambda d: d["results"][1].update(reason=""),
    "a member that is not known": lambda d: d.update(extra=1),
    "no results": lambda d: d.pop("results"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_wrong_does_not_fit(change: Callable[[dict[str, Any]], object]) -> None:
    data = answer(*FOUND)
    change(data)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data)


def test_a_refusal_fits() -> None:
    VALIDATOR.validate({**answer(*FOUND), "ready": False, "exit_status": 3, "error": ERROR})
    VALIDATOR.validate({"schema_version": 1, "error": ERROR})


def test_a_finding_is_complete_or_not() -> None:
    assert all(complete(each) for each in FOUND)
    assert not complete(Finding(Status.FAIL, "x", "y", reason="r"))
    assert not complete(Finding(Status.PASS, "", "y"))
    assert not complete(Finding(Status.SKIP, "x", "y"))
