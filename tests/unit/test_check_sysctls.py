# SPDX-License-Identifier: MIT
"""Tests of ``containers.sysctls``."""

import json

import pytest
from builders.target import Target

from upgrade.check.model import Status


def start(target: Target, **sysctl: str) -> None:
    target.runc("web", 700)
    file = target.machine.root / "run/runc/web/state.json"
    state = json.loads(file.read_text())
    state["config"]["sysctl"] = sysctl or None
    file.write_text(json.dumps(state))


@pytest.mark.parametrize(
    "name", ["net.core.somaxconn", "net/ipv4/ip_local_port_range", "net.ipv4.tcp_keepalive_time"]
)
def test_what_criu_leaves_behind_is_named(target: Target, name: str) -> None:
    start(target, **{name: "4096", "kernel.sem": "1 2 3 4"})
    found = target.one("containers.sysctls", Status.WARN, containers=("web",), cgroups=())
    assert found.subject == "web"
    assert found.seen == f"was started with {name.replace('/', '.')}=4096"


@pytest.mark.parametrize("name", ["net.ipv4.conf.all.forwarding", "fs.mqueue.msg_max", "kernel.shmmax"])
def test_what_criu_brings_back_passes(target: Target, name: str) -> None:
    start(target, **{name: "1"})
    assert "1 of" in target.one("containers.sysctls", Status.PASS, containers=("web",), cgroups=()).seen


def test_nothing_set(target: Target) -> None:
    start(target)
    target.one("containers.sysctls", Status.PASS, containers=("web",))
