# SPDX-License-Identifier: MIT
"""Real software, unmodified, goes through an upgrade: all of it in one machine, frames in place."""

from typing import Any

import jsonschema
import pytest

from tests.vm.conftest import WORKLOADS
from tests.vm.test_upgrade import SCHEMA, gap
from upgrade.rehearse.rehearsal import Options, rehearse

# The workloads and the containers in the report
SOFTWARE = {
    "postgres": "postgres",
    "nginx": "/workload/nginx",
    "python": "/workload/python",
    "node": "/workload/node",
    "redis-pubsub": "/workload/redis-pubsub",
    "nats": "/workload/nats",
    "tomcat": "/workload/tomcat",
}
# What a client asks for answers at once; one that only listens gets what it is sent, nginx' pieces once a second
LISTENERS = ("nginx", "redis-pubsub")


@pytest.fixture(scope="module")
def upgraded() -> dict[str, Any]:
    """Return the result of one upgrade of everything."""
    workloads = tuple(WORKLOADS / name for name in SOFTWARE)
    return rehearse(Options("trixie", "trixie-security", workloads), print)


def test_all_come_back_with_their_frames_in_place(upgraded: dict[str, Any]) -> None:
    (done,) = upgraded["rounds"]
    report = done["report"]
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    assert report["outcome"] == "upgraded", report["reason"]
    assert {c["name"]: c["outcome"] for c in report["containers"]} == dict.fromkeys(
        SOFTWARE.values(), "restored"
    )
    assert report["pages_total"] > 30_000
    assert report["pages_copied"] < 0.05 * report["pages_total"]


@pytest.mark.parametrize("name", SOFTWARE)
def test_it_is_as_it_was(upgraded: dict[str, Any], name: str) -> None:
    verdict = upgraded["rounds"][0]["verify"][name]
    assert verdict["exit_status"] == 0, verdict["output"]


@pytest.mark.parametrize("name", SOFTWARE)
def test_its_client_sees_only_a_pause(upgraded: dict[str, Any], name: str) -> None:
    verdict = upgraded["workloads"][name]["probe"]
    assert verdict["exit_status"] == 0, verdict["output"]
    seen = gap(upgraded, name)
    assert seen["errors"] == []
    report = upgraded["rounds"][0]["report"]
    own = next(c["downtime_seconds"] for c in report["containers"] if c["name"] == SOFTWARE[name])
    assert seen["largest_gap_seconds"] > 0.9 * own  # the same connection, over the whole upgrade
    if name in LISTENERS:
        assert seen["replies"] > 20
    else:
        assert seen["replies"] == seen["requests"] > 50
