# SPDX-License-Identifier: MIT
"""Files in memory that tasks in the host's namespaces use: they are copied while the tasks stand still."""

from collections.abc import Iterator, Sequence
from functools import partial

from upgrade.check.containers.trouble import Trouble, tell
from upgrade.check.model import Check, Finding, Status
from upgrade.check.processes import Process, by_container
from upgrade.check.situation import Situation
from upgrade.dump import volatile

MUCH_BYTES = 64 << 20
"""What may be noticed."""


def files(situation: Situation) -> Iterator[Finding]:
    """Add up the files in memory of each container without a mount namespace of its own."""
    found = (
        trouble
        for container, members in by_container(situation.processes)
        if container.engine in ("cgroup", "unit")
        for trouble in _of_container(members)
    )
    yield from tell(
        found, "files in memory", f"no container in the host's namespaces uses {MUCH_BYTES >> 20} MiB of them"
    )


def _of_container(members: Sequence[Process]) -> Iterator[Trouble]:
    owned: Sequence[str] = members[0].container.data.get("owned", ())
    found = volatile.find(members[0].host, [process.pid for process in members], owned)
    size = sum(entry["bytes"] for entry in found.values())
    largest = max(found, key=lambda path: found[path]["bytes"], default="")
    told = partial(
        Trouble,
        members[0],
        f"uses {size >> 20} MiB of files in memory (tmpfs), most of it {largest}",
        "/proc/self/mountinfo",
        remedy="have it use files on a disk, for example by another configuration of the program",
    )
    if size > volatile.MOST_BYTES:
        yield told(
            "they end with the kernel and would have to be copied while it stands still; up to "
            f"{volatile.MOST_BYTES >> 20} MiB are"
        )
    elif size > MUCH_BYTES:
        yield told(
            "they are copied while it stands still, and the range that survives has to have room for them",
            status=Status.WARN,
        )


CHECKS = (Check("containers.volatile", "their files in memory are few", files),)
