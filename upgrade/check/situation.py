# SPDX-License-Identifier: MIT
"""What the checks look at: the host, the kernel to enter, the containers to preserve. Found out once, on demand."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from upgrade import cgroup, plan
from upgrade.check.mounts import MountTable
from upgrade.check.processes import Process
from upgrade.config import Config
from upgrade.engines import Container
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.kexec import installed
from upgrade.kexec.image import KernelImage
from upgrade.request import Request


class Unknown(Exception):
    """A check cannot say anything; the text is why. Another check reports the cause."""


@dataclass(frozen=True, slots=True)
class Target:
    """The kernel to enter."""

    path: Path
    image: KernelImage
    initrd: Path

    @property
    def release(self) -> str:
        """Return its ``uname -r``."""
        return self.image.release


@dataclass(frozen=True)
class Situation:
    """An upgrade that somebody has in mind."""

    host: Host
    request: Request
    config: Config

    @cached_property
    def target(self) -> Target:
        """The kernel to enter.

        :raises Unknown: if it cannot be read (the check ``target.kernel`` says why)
        """
        try:
            return self.find_target()
        except UpgradeError as e:
            raise Unknown(f"the kernel to enter is not known: {e}") from e

    def find_target(self) -> Target:
        """Return the kernel to enter; raises what ``target.kernel`` reports."""
        kernel = installed.find(self.host, self.request.kernel)
        image = KernelImage.open(kernel)
        return Target(kernel, image, plan.find_initrd(kernel, image.release, self.request.initrd))

    @cached_property
    def containers(self) -> Sequence[Container]:
        """The containers to preserve.

        :raises Unknown: if there are none, or one cannot be found (``containers.found`` says why)
        """
        try:
            return plan.find_containers(self.host, self.request)
        except UpgradeError as e:
            raise Unknown(f"the containers are not known: {e}") from e

    @cached_property
    def tasks(self) -> Sequence[tuple[Container, int]]:
        """Each process of each container: ``(container, pid)``."""
        return [(c, pid) for c in self.containers for pid in cgroup.pids(self.host, c.cgroup)]

    @cached_property
    def processes(self) -> Sequence[Process]:
        """The same, as something that can be asked; each file is read once."""
        tables: dict[str, MountTable] = {}
        return [Process(self.host, container, pid, tables) for container, pid in self.tasks]
