# SPDX-License-Identifier: MIT
"""How a rehearsal's result is told to people."""

import json
from typing import Any

from upgrade.cli.rehearse import render


def result(probe_status: int = 0, verify: str = "ok    a: pid 7\nnote  a: more") -> dict[str, Any]:
    """Return a result without a report, of one workload with a client outside."""
    seen = json.dumps({"replies": 20, "largest_gap_seconds": 1.5, "errors": []})
    return {
        "report": None,
        "rounds": [{}],
        "workloads": {
            "a": {
                "preserved": ["/a"],
                "verify": {"exit_status": 0 if verify.startswith("ok") else 1, "output": verify},
                "probe": {"exit_status": probe_status, "output": f"noise\n{seen}\n"},
            }
        },
        "error": None,
        "accelerator": "tcg",
        "seconds": 3.0,
        "console": "/console",
        "outcome": "passed",
    }


def test_a_client_that_saw_a_pause() -> None:
    text = "\n".join(render(result()))
    assert "a: intact, 1 things verified" in text
    assert "one connection all the time, 20 replies, largest gap 1.50 s" in text
    assert "the tool measured" not in text  # nothing to compare with


def test_damage_is_shown_line_by_line() -> None:
    text = "\n".join(render(result(probe_status=1, verify="FAIL  a: pid 8 instead of 7\nok    a: rest")))
    assert "a: DAMAGED, 1 things verified" in text
    assert "FAIL  a: pid 8 instead of 7" in text
    assert "client outside: FAILED" in text


def test_a_probe_without_a_result() -> None:
    broken = result(probe_status=1)
    broken["workloads"]["a"]["probe"]["output"] = "no connection"
    assert "exit status 1: no connection" in "\n".join(render(broken))
