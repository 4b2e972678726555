# SPDX-License-Identifier: MIT
"""Services of systemd: the task tree of one, restored by systemd itself.

``systemctl`` shows them afterwards as if nothing had happened: active, with the same main process. What it takes is
imported where it is needed: most upgrades have no service to restore.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from upgrade import cgroup
from upgrade.engines import tree
from upgrade.engines.base import Container, Images, Unlock
from upgrade.errors import UpgradeError
from upgrade.host import Host

STREAMS = "streams.json"
SETTLE_S = 60.0
POLL_S = 0.05
# systemd.service(5), Restart=: which settings start a service again that has ended in this state
RESTARTED = {
    "failed": ("always", "on-failure", "on-abnormal", "on-abort"),
    "inactive": ("always", "on-success"),
}


class UnitEngine:
    """Preserves services."""

    name = "unit"
    holds = True
    lazy = True

    def __init__(self, host: Host) -> None:
        self.host = host

    def available(self) -> list[Container]:
        """Return nothing: a service has to be named, since most are better started afresh."""
        return []

    def knows(self, name: str) -> bool:
        """Never: a service is named as such."""
        return False

    def find(self, name: str) -> Container:
        """Return the service ``name`` (with or without ``.service``)."""
        from upgrade.services import definition  # of the old kernel only

        found = definition.read(self.host, name)
        return Container(
            name=found.name,
            engine=self.name,
            cgroup=found.cgroup,
            root_pid=found.main_pid,
            host_pids=True,
            host_network=True,
            data=found.data(self.host),
        )

    def dump_options(self, container: Container, options: Any) -> None:
        """Dump as a task tree. What systemd will hand over at the restore is noted beside the images."""
        from upgrade.services import journal

        tree.dump_options(self.host, container, options, container.data["owned"])
        options.shell_job = not container.data["leads_session"]
        pids = cgroup.pids(self.host, container.cgroup)
        streams = journal.streams(self.host, pids)
        options.external.extend(f"unix[{inode}]" for inode in streams)
        directory = tree.images_of(options)
        if directory is not None:
            (directory / STREAMS).write_text(json.dumps(streams))

    def prepare_images(self, container: Container, images: Images) -> None:
        """Nothing: what there is to know is known at the dump."""

    def capture(self, container: Container, images: Images) -> None:
        """Nothing, either."""

    def expect(self, containers: Sequence[Container]) -> None:
        """Prepare nothing."""

    def restore(self, container: Container, images: Images, unlock: Unlock) -> int:
        """Have systemd start it, which restores it."""
        from upgrade.services import dropin, launch

        streams = json.loads((images.directory / STREAMS).read_text())
        dropin.ensure(self.host, container.name, container.data)
        return launch.restore(container.name, images, container.data, streams, unlock)

    def cold_start(self, container: Container) -> bool:
        """Have it started when the boot gets to it; or now, if the boot would not start it."""
        from upgrade.services import systemd

        systemd.enqueue_start(container.name)
        return True

    def clean_up(self, container: Container) -> None:
        """Make the start of the service its own again, and end what a failed restore left."""
        from upgrade.services import dropin, systemd

        cgroup.kill(self.host, container.cgroup)
        systemd.stop_at_once(container.name)
        if dropin.remove(self.host, container.name):
            systemd.reload()

    def runs(self, container: Container) -> bool:
        """Ask systemd, which may still be starting it."""
        from upgrade.services import systemd

        deadline = time.monotonic() + SETTLE_S
        while (state := systemd.state(container.name)) == "activating" and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return state == "active"

    def helpers(self, _container: Container) -> tuple[str, ...]:
        """Return none: what works in the service's cgroup is a part of it."""
        return ()

    def is_late(self, _container: Container) -> bool:
        """Tell that it is not: systemd starts it out of turn."""
        return False


def settle(host: Host, names: list[str]) -> list[str]:
    """Make the starts of services that run again their own, as they were before; return what went wrong, a line each.

    One that has ended in the meantime is started if systemd would have done so.
    """
    from upgrade.services import dropin, systemd

    problems = []
    try:
        removed = [name for name in names if dropin.remove(host, name)]
        if removed:
            systemd.reload()
        for name in removed:
            found = systemd.show(name, ["ActiveState", "Restart"])
            if found.get("Restart", "no") in RESTARTED.get(found.get("ActiveState", ""), ()):
                systemd.enqueue_start(name)
    except (OSError, UpgradeError) as e:
        problems.append(f"the start of {', '.join(names)} is still a restore: {e}")
    return problems
