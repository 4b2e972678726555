# SPDX-License-Identifier: MIT
"""What the checks look at: the host, the kernel to enter, the containers to preserve. Found out once, on demand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from upgrade import cgroup, plan
from upgrade.check.mounts import MountTable
from upgrade.check.processes import Process
from upgrade.config import Config
from upgrade.engines import Container, engines
from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.kexec import installed, kconfig, modules, vdso_compare, vdso_find, vmlinux
from upgrade.kexec.image import KernelImage
from upgrade.kexec.kconfig import KernelConfig
from upgrade.kexec.modules import Modules
from upgrade.kexec.vdso_compare import VdsoComparison
from upgrade.request import Request

# e_ident[EI_CLASS] of an ELF file (elf(5))
_ELFCLASS32 = b"\x7fELF\x01"


class Unknown(Exception):
    """A check cannot say anything; the text is why. Another check reports the cause.

    ``subject`` is what is not known; the check's title if there is none.
    """

    def __init__(self, message: str, *, subject: str = "") -> None:
        super().__init__(message)
        self.subject = subject


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
    refused: set[str] = field(default_factory=set)
    """The subjects for which a check has failed by now."""

    @cached_property
    def target(self) -> Target:
        """The kernel to enter.

        :raises Unknown: if it cannot be read (the check ``target.kernel`` says why)
        """
        try:
            return self.find_target()
        except UpgradeError as e:
            raise Unknown(str(e), subject="the kernel to enter") from e

    def find_target(self) -> Target:
        """Return the kernel to enter; raises what ``target.kernel`` reports."""
        kernel = installed.find(self.host, self.request.kernel)
        image = KernelImage.open(kernel)
        return Target(kernel, image, plan.find_initrd(kernel, image.release, self.request.initrd))

    @cached_property
    def vmlinux(self) -> bytes:
        """The kernel to enter, decompressed.

        :raises Unknown: if it cannot be (the check ``target.vdso`` says why)
        """
        try:
            return vmlinux.decompress(self.target.image)
        except UpgradeError as e:
            raise Unknown(str(e), subject="the kernel to enter") from e

    @cached_property
    def comparison(self) -> VdsoComparison:
        """What becomes of the vDSO. A plan needs it, too, and it takes longer than all else that is looked at.

        That for programs of 32 bits is compared if a container runs one: the kernel that runs would have to be
        decompressed for it.

        :raises Refusal: if the new kernel cannot be decompressed, or has no vDSO
        :raises Unknown: if it cannot be read
        """
        image = self.target.image
        try:
            target = vdso_find.in_vmlinux(self.vmlinux, image.release)
        except Unknown as e:
            raise e.__cause__ or e from None  # whoever asks for this is the one who says why
        except Refusal as e:
            raise Refusal(e.message, subject=str(image.path), hint=e.hint) from e
        return vdso_compare.compare(vdso_find.running(self.host, compat=bool(self.narrow)), target)

    @cached_property
    def narrow(self) -> Sequence[str]:
        """The containers that run programs of 32 bits; none where they are not known."""
        try:
            tasks = self.tasks
        except Unknown:
            return ()
        return sorted({container.name for container, pid in tasks if self._is_narrow(pid)})

    def _is_narrow(self, pid: int) -> bool:
        try:
            with self.host.path(f"/proc/{pid}/exe").open("rb") as file:
                return file.read(len(_ELFCLASS32)) == _ELFCLASS32
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            return False

    @cached_property
    def kernel_config(self) -> KernelConfig:
        """The configuration of the kernel to enter.

        :raises Unknown: if it is nowhere
        """
        release, path = self.target.release, self.target.path
        found = kconfig.find(self.host, release, path) or kconfig.inside(self.vmlinux, str(path))
        if found is None:
            raise Unknown(f"there is no /boot/config-{release}", subject=f"configuration of {release}")
        return found

    @cached_property
    def modules(self) -> Modules:
        """The modules of the kernel to enter.

        :raises Unknown: if there are none (the check ``target.modules`` says so)
        """
        found = modules.load(self.host, self.target.release)
        if found is None:
            raise Unknown("they are not installed", subject=f"modules of {self.target.release}")
        return found

    @cached_property
    def containers(self) -> Sequence[Container]:
        """The containers to preserve.

        :raises Unknown: if there are none, or one cannot be found (``containers.found`` says why)
        """
        try:
            return self.find_containers()
        except UpgradeError as e:
            raise Unknown(str(e), subject="the containers") from e

    def find_containers(self) -> Sequence[Container]:
        """Return the containers to preserve; raises what ``containers.found`` reports.

        :raises Unknown: if all are wanted and none runs: the host can be checked without them
        """
        asked = self.request
        only_all = asked.all and not (asked.containers or asked.cgroups or asked.units)
        if only_all and not any(each.available() for each in engines(self.host)):
            raise Unknown("none runs; the host is checked without them", subject="the containers")
        return plan.find_containers(self.host, asked)

    @cached_property
    def tasks(self) -> Sequence[tuple[Container, int]]:
        """Each process of each container: ``(container, pid)``."""
        return [(c, pid) for c in self.containers for pid in cgroup.pids(self.host, c.cgroup)]

    @cached_property
    def processes(self) -> Sequence[Process]:
        """The same, as something that can be asked; each file is read once."""
        tables: dict[str, MountTable] = {}
        return [Process(self.host, container, pid, tables) for container, pid in self.tasks]
