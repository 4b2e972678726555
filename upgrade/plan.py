# SPDX-License-Identifier: MIT
"""What an upgrade would do, found out without touching anything.

Every refusal names subject, reason and remedy. ``check`` prints a plan, ``run`` carries it out.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from memfs.ranges import Range
from upgrade import budget, cgroup, cold, netconf, paths
from upgrade.cold import record
from upgrade.config import Config
from upgrade.criu import Criu, CriuVersion
from upgrade.dump import sockets
from upgrade.engines import Container, Engine, engine, engines, podman_pod
from upgrade.errors import ExitStatus, Refusal, UpgradeError, UsageError
from upgrade.host import Host
from upgrade.kexec import cmdline, vdso_compare, vdso_find
from upgrade.kexec import installed as installed_kernels
from upgrade.kexec.image import KernelImage
from upgrade.kexec.load import is_loaded
from upgrade.kexec.vdso_compare import VdsoComparison
from upgrade.process import missing
from upgrade.request import Request
from upgrade.undo import Undo

PROGRAMS = ("criu", "kexec", "nft", "ip", "mkfs.ext4", "mount", "umount", "systemctl", "modprobe")
FRAMES_PROGRAMS = ("ndctl", "blkid", "mkswap")
# Taken by kernel threads before the first userspace runs
PIDS_OF_KERNEL, PIDS_PER_CPU = 100, 8


@dataclass(frozen=True, slots=True)
class Plan:
    """An upgrade that the checks allow."""

    request: Request
    kernel: Path
    initrd: Path
    kernel_to: str
    command_line: str  # without the session
    store: Range
    frames: tuple[Range, ...]
    """The ranges in which page frames stay; none if pages are copied."""
    containers: tuple[Container, ...]
    criu_version: CriuVersion
    vdso: Mapping[str, Any]
    memory_bytes: int
    warnings: tuple[str, ...]


def make(
    host: Host, request: Request, config: Config, compare: Callable[[], VdsoComparison] | None = None
) -> Plan:
    """Return the plan for a request.

    :param compare: compares the vDSOs, for whoever has the new kernel decompressed already
    :raises UpgradeError: with the exit status of the first thing that stands against it
    """
    privileged()
    for program in PROGRAMS:
        installed(program)
    refuse_unfinished(host)
    kernel = installed_kernels.find(host, request.kernel)
    image = KernelImage.open(kernel)
    initrd = find_initrd(kernel, image.release, request.initrd)
    store = budget.find_store(host, request.append)
    with Criu() as criu:
        version = criu.version()
    containers = find_containers(host, request)
    refuse_unknown_addresses(host, containers)
    for name in request.cold:
        record.refuse(host, name)
    frames, warnings = budget.find_frames(host, request)
    frames, copied = budget.or_copy(host, request, containers, store, frames)
    warnings += copied
    for program in FRAMES_PROGRAMS if frames else ():
        installed(program)
    memory = budget.refuse_too_large(host, containers, store, frames)
    vdso = compare() if compare is not None else compare_vdso(host, image)
    warnings += pid_warnings(host, containers)
    if is_loaded(host):
        warnings.append("a kernel was already loaded for kexec; it is replaced")
    return Plan(
        request=request,
        kernel=kernel,
        initrd=initrd,
        kernel_to=image.release,
        command_line=cmdline.build(host.command_line(), request.append, "check"),
        store=store,
        frames=frames,
        containers=tuple(containers),
        criu_version=version,
        vdso=vdso.to_json(),
        memory_bytes=memory,
        warnings=tuple(warnings),
    )


def refuse_unfinished(host: Host) -> None:
    """Refuse while the memory of the last upgrade's containers still comes, or a run is not undone altogether."""
    if host.exists(os.fspath(paths.PAGES)):
        raise Refusal(
            "still brings the memory of restored containers back",
            subject=paths.PAGES_UNIT,
            hint="wait for it: seamless-upgrade status --wait",
        )
    left = Undo(host, host.path(os.fspath(paths.UNDO))).left()
    if left:
        raise Refusal(
            f"an upgrade has not been undone altogether: {', '.join(sorted(set(left)))}",
            subject=paths.RUN_UNIT,
            hint=f"seamless-upgrade recover tries it again and says what is in its way; when you have undone it by "
            f"hand, remove {paths.UNDO}",
        )


def privileged() -> None:
    """Refuse without root."""
    if os.geteuid() != 0:
        raise UpgradeError("needs root", hint="run it with sudo", status=ExitStatus.NOT_PRIVILEGED)


def installed(program: str) -> None:
    """Refuse if a program is not installed."""
    import shutil

    from upgrade.process import PATH

    if shutil.which(program, path=PATH) is None:
        raise missing(program)


def _file(name: str, option: str) -> Path:
    path = Path(name).absolute()
    if not path.is_file():
        raise UsageError("no such file", subject=name, hint=f"give {option} the path of a file that exists")
    return path


def find_initrd(kernel: Path, release: str, given: str | None) -> Path:
    """Return the initrd: the one given, else the one that belongs to the kernel by its name."""
    if given is not None:
        return _file(given, "--initrd")
    names = (f"initrd.img-{release}", f"initramfs-{release}.img", "initrd.img", "initrd")
    for directory in (kernel.parent, Path("/boot"), Path("/usr/lib/modules") / release):
        for name in names if directory == kernel.parent else (*names[:2], "initrd"):
            if (directory / name).is_file():
                return directory / name
    raise Refusal(
        f"there is no initrd for {release}",
        subject=str(kernel),
        hint=f"give one with --initrd, or make it: update-initramfs -c -k {release}",
    )


def find_containers(host: Host, request: Request) -> list[Container]:
    """Return what is to be preserved; each refusal names its container."""
    found: list[Container] = []
    for name in request.cgroups:
        found.append(engine(host, "cgroup").find(name))
    for name in request.containers:
        found.append(engine_of(host, name).find(name))
    for name in request.units:
        found.append(engine(host, "unit").find(name))
    if request.all:
        refuse_cold(host, request)
        found += [each.find(c.name) for each in engines(host) for c in each.available()]
    unique = list({(c.engine, c.name): c for c in found}.values())
    if not unique:
        raise nothing_to_preserve()
    names = [c.cgroup for c in unique]
    for one in unique:
        if any(other != one.cgroup and other.startswith(one.cgroup.rstrip("/") + "/") for other in names):
            raise Refusal(
                "holds another preserved container", subject=one.name, hint="name only one of the two"
            )
    podman_pod.refuse_parts(unique)
    return unique


def engine_of(host: Host, name: str) -> Engine:
    """Return the engine that runs a container called ``name``.

    :raises Refusal: naming those that run, if none does
    """
    adapters = engines(host)
    for each in adapters:
        if each.knows(name):
            return each
    for engine_name in cold.ENGINES:
        adapter = cold.engine(host, engine_name)
        if any(name in (each.name, each.id, each.id[:12]) for each in adapter.running()):
            raise Refusal(
                f"{adapter.why}, so it cannot be preserved",
                subject=name,
                hint=f"--cold {engine_name} stops all that it runs before the jump and starts it again after it",
            )
    known = [f"{c.name} ({each.name})" for each in adapters for c in each.available()]
    raise Refusal(
        "no engine runs such a container as root",
        subject=name,
        hint=f"running containers: {', '.join(known) or 'none'}",
    )


def refuse_cold(host: Host, request: Request) -> None:
    """Refuse all containers if there are some that cannot be preserved, unless it is said what becomes of those."""
    for name in cold.ENGINES.keys() - set(request.cold):
        adapter = cold.engine(host, name)
        if running := adapter.running():
            raise Refusal(
                f"{adapter.why}, so they cannot be preserved",
                subject=f"{name}: {', '.join(each.name for each in running)}",
                hint=f"--cold {name} stops them before the jump and starts them after it; or name what to preserve, "
                "instead of --all",
            )


def nothing_to_preserve() -> UsageError:
    """Return the error for an upgrade without containers."""
    return UsageError(
        "nothing to preserve",
        hint="name containers with --container NAME, --cgroup PATH or --unit SERVICE, or take --all; for a kernel "
        "upgrade without containers systemctl kexec is enough",
    )


def refuse_unknown_addresses(host: Host, containers: list[Container]) -> None:
    """Refuse connections from an address that the new kernel would not have in time.

    Only network cards are set up before the restore: an address on a bridge, a bond or a VLAN comes back with the
    network manager, too late to bind a restored connection to it.
    """
    in_host = [c for c in containers if c.host_network]
    table = sockets.table(host) if in_host else {}
    known = (
        {ip_interface(a.split()[0]).ip for link in netconf.snapshot(host) for a in link.addresses}
        if table
        else set()
    )
    for container in in_host:
        for held in sockets.of_pids(host, cgroup.pids(host, container.cgroup), table):
            if held.is_established and not held.ip.is_loopback and held.ip not in known:
                raise Refusal(
                    f"has a connection from {held.ip}, which is not the address of a network card",
                    subject=container.name,
                    hint="close the connection first, or put the address on the card itself",
                )


def compare_vdso(host: Host, image: KernelImage) -> VdsoComparison:
    """Return the comparison of both vDSOs."""
    return vdso_compare.compare(vdso_find.running(host), vdso_find.in_kernel(image.path))


def pid_warnings(host: Host, containers: list[Container]) -> list[str]:
    """Return warnings for host PIDs that the new kernel's own threads may take."""
    taken = PIDS_OF_KERNEL + PIDS_PER_CPU * (os.cpu_count() or 1)
    found = []
    for container in containers:
        low = [p for p in cgroup.pids(host, container.cgroup) if p <= taken] if container.host_pids else []
        if low:
            found.append(f"{container.name}: PIDs {low} may be taken by threads of the new kernel")
    return found
