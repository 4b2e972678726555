# SPDX-License-Identifier: MIT
"""Containers that are a service of systemd, as Quadlet makes them: conmon is the main process.

Their cgroup lies beneath that of the service (``--cgroups=split``), where podman puts it if it runs in the service. So
it is the start of the service that restores them, as with any service that is preserved. Of a pod the infra container's
conmon is the main process.
"""

from typing import Any

from upgrade import cgroup
from upgrade.engines import bus
from upgrade.engines.base import Container, Images, Unlock
from upgrade.engines.podman_inspect import Inspected
from upgrade.errors import Refusal
from upgrade.host import Host

# Set by Quadlet and `podman generate systemd`
LABEL = "PODMAN_SYSTEMD_UNIT"


def of(host: Host, inspected: Inspected, container: Container) -> dict[str, Any]:
    """Return what the restore has to know of a container's service; nothing if it is of none.

    :raises Refusal: if systemd could not take the container over
    """
    unit = (inspected["Config"].get("Labels") or {}).get(LABEL)
    if not unit:
        return {}
    from upgrade.services import definition  # of the old kernel only

    service = definition.read(host, unit, container=True)
    name = container.name
    if not inspected.get("IsInfra"):  # that of a pod stays where the pod is
        _refuse_place(service, container)
    if str(service.main_pid) != str((inspected.get("State") or {}).get("ConmonPid")):
        raise Refusal(
            f"its conmon is not the main process of {service.name}",
            subject=name,
            hint="start it with podman run --sdnotify=conmon, as Quadlet does",
        )
    if (
        service.properties["Type"].startswith("notify")
        and inspected["Config"].get("sdNotifyMode") == "container"
    ):
        raise Refusal(
            f"tells systemd itself how it is (Notify=true in {service.name}), through a socket that ends with this "
            "kernel",
            subject=name,
            hint="leave Notify= out, or set it to healthy",
        )
    _refuse_others(host, service, container)
    return {
        "name": service.name,
        "late": True,
        "conmon": inspected["ConmonPidFile"],
        **service.data(host),
    }


def _refuse_place(service: Any, container: Container) -> None:
    if not container.cgroup.startswith(f"{service.cgroup.rstrip('/')}/"):
        raise Refusal(
            f"belongs to systemd's {service.name}, but its cgroup {container.cgroup} is not beneath that",
            subject=container.name,
            hint="start it with podman run --cgroups=split, as Quadlet does; or without a service",
        )


def _refuse_others(host: Host, service: Any, container: Container) -> None:
    """Refuse what would end with this kernel: whatever is in the service, and not in the container."""
    inside = {service.main_pid, *cgroup.pids(host, container.cgroup)}
    others = [pid for pid in cgroup.pids(host, service.cgroup) if pid not in inside]
    if others:
        listed = ", ".join(f"{pid} ({host.read_or(f'/proc/{pid}/comm', '?')})" for pid in others)
        raise Refusal(
            f"is not all that runs in {service.name}: {listed}",
            subject=container.name,
            hint="end these, or leave it out",
        )


def restore(host: Host, container: Container, images: Images, unlock: Unlock) -> None:
    """Have the start of its service restore a container; conmon is its main process then."""
    from upgrade.services import dropin, launch

    service = container.data["service"]
    bus.wait(host)
    dropin.ensure(host, service["name"], service)
    podman = {"id": container.data["id"], "pid_file": service["conmon"]}
    launch.restore(service["name"], images, service, {}, unlock, podman)


def clean_up(host: Host, name: str) -> None:
    """Make the start of a service its own again, after a restore that failed."""
    from upgrade.services import dropin, systemd

    systemd.stop_at_once(name)
    if dropin.remove(host, name):
        systemd.reload()


def start(name: str) -> None:
    """Have a service started when its turn comes."""
    from upgrade.services import systemd

    systemd.enqueue_start(name)
