# SPDX-License-Identifier: MIT
"""``check --probe``: each container is really dumped, up to the moment before a jump, and then let go.

Nothing is left, even if this process is killed: CRIU itself freezes the tasks, and it rolls back when nobody answers it
any more; the images are on a file system that is mounted nowhere and ends with its last descriptor. So there is no
journal to undo, and no lock of the network either: the sockets stay what they are, and what arrives meanwhile waits in
them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from upgrade import cgroup, linux, plan
from upgrade.check.host import moment
from upgrade.check.model import Check, Finding, failed, passed, skipped
from upgrade.check.situation import Situation, Unknown
from upgrade.engines import Container, engine
from upgrade.errors import UpgradeError

# Pages are not copied: what is left are metadata, and the contents of deleted files
IMAGES_BYTES = 256 << 20


def probe(situation: Situation) -> Iterator[Finding]:
    """Dump one container after the other: so each stands still for as short as it can."""
    plan.privileged()
    if moment.upgrades(situation.host):
        raise Unknown("an upgrade goes on", subject="the containers")
    for container in situation.containers:
        reason = _hindrance(situation, container)
        if reason:
            yield skipped(container.name, "not dumped", reason=reason)
        else:
            yield _finding(situation, container)


def _hindrance(situation: Situation, container: Container) -> str:
    """Return why a container must not be frozen for nothing; nothing if it may."""
    if os.getpid() in cgroup.pids(situation.host, container.cgroup):
        return "this very command is in its cgroup, and would be frozen with it"
    if container.name in situation.refused:
        return "another check failed for it, so that it would stand still for nothing"
    return ""


def _finding(situation: Situation, container: Container) -> Finding:
    try:
        freeze_ns = dump(situation, container)
    except UpgradeError as e:
        return failed(
            container.name,
            e.message,
            reason="its tasks run on, but an upgrade would end here",
            remedy=e.hint or "see the reason",
        )
    return passed(
        container.name,
        f"CRIU dumped it and let it go; it stood still for {freeze_ns / 1e6:.0f} ms",
        figures=(("freeze_ns", freeze_ns),),
    )


def dump(situation: Situation, container: Container) -> int:
    """Dump a container as an upgrade does that leaves pages in place, and let it go; return for how long it stood.

    :raises UpgradeError: if CRIU cannot dump it; it runs on then, too
    """
    from upgrade.dump.dumper import Dumps  # numpy

    dumps = Dumps(situation.host, situation.config)
    images = linux.detached_tmpfs(IMAGES_BYTES)
    try:
        directory = Path(f"/proc/self/fd/{images}/container")
        adapter = engine(situation.host, container.engine)
        try:
            dumps.prepare(adapter, container, directory, in_place=True)
            dumps.watch()
            dumps.start()
            dumps.wait_until_held()
        finally:
            dumps.abort()
    finally:
        os.close(images)
    (done,) = dumps.dumps
    return done.ended_ns - done.began_ns


CHECKS = (
    Check("containers.probe", "CRIU really dumps them (only with --probe)", probe, in_run=False, asked=True),
)
