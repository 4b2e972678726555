# SPDX-License-Identifier: MIT
"""Are the containers there, and do their numbers and addresses come back in time?"""

from collections.abc import Iterator

from upgrade import plan
from upgrade.check.model import Check, Finding, passed, warned
from upgrade.check.situation import Situation


def found(situation: Situation) -> Iterator[Finding]:
    """Look for each container that was named."""
    for container in situation.find_containers():
        yield passed(container.name, f"{container.engine}, PID {container.root_pid}", container.cgroup)


def addresses(situation: Situation) -> Iterator[Finding]:
    """Look for connections from addresses that come back too late."""
    plan.refuse_unknown_addresses(situation.host, list(situation.containers))
    yield passed("addresses of connections", "all on network cards")


def pids(situation: Situation) -> Iterator[Finding]:
    """Look for numbers that the new kernel's own threads take."""
    low = plan.pid_warnings(situation.host, list(situation.containers))
    for text in low:
        name, _, what = text.partition(": ")
        yield warned(
            name,
            what,
            reason="a container in the host's PID namespace needs its numbers back",
            remedy="restart it now, as its numbers are higher then",
        )
    if not low:
        yield passed("host PIDs", "none is so low that the new kernel's threads take it")


CHECKS = (
    Check("containers.found", "the containers to preserve are there", found),
    Check("containers.addresses", "their connections' addresses come back in time", addresses),
    Check("containers.pids", "their process IDs stay free", pids),
)
