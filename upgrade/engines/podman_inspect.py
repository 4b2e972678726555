# SPDX-License-Identifier: MIT
"""What ``podman container inspect`` says of a container, as the restore needs it."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from upgrade import cgroup
from upgrade.engines.base import Container
from upgrade.errors import Refusal
from upgrade.host import Host

NETWORKS = ("bridge", "host", "none", "private")

Inspected = Mapping[str, Any]


def refuse_what_cannot_come_back(inspected: Inspected) -> None:
    """Refuse what podman cannot restore, or what ends with the kernel."""
    name = inspected["Name"]
    configuration = inspected["HostConfig"]
    network = configuration["NetworkMode"].partition(":")[0]
    if inspected["Config"].get("Tty") and "runc" in inspected.get("OCIRuntime", ""):
        raise Refusal(
            "has a terminal (--tty), and the runtime runc",
            subject=name,
            hint="start it without --tty, or with --runtime crun",
        )
    if (configuration.get("LogConfig") or {}).get("Type", "").startswith("passthrough"):
        raise Refusal(
            "writes to the files of whoever has started it (--log-driver passthrough)",
            subject=name,
            hint="start it with --log-driver journald or k8s-file",
        )
    if network not in NETWORKS and not inspected.get("Dependencies"):  # of a pod: see there
        raise Refusal(
            f"has a network of the kind {network}, whose helper ends with this kernel",
            subject=name,
            hint="podman run --network bridge (the default of root's containers), host or none",
        )


def is_removed(inspected: Inspected) -> bool:
    """Tell whether podman removes a container when it ends (``--rm``)."""
    return bool(inspected["HostConfig"].get("AutoRemove"))


def id_files(inspected: Inspected) -> list[list[str]]:
    """Return where a container's id is written to (``--cidfile``) if that ends with the kernel, with the id."""
    file = inspected["HostConfig"].get("ContainerIDFile") or ""
    return [[file, inspected["Id"]]] if file.startswith("/run/") else []


def again(inspected: Inspected) -> list[str]:
    """Return the words to podman that make a container like this one and start it, for one that was removed.

    Nothing if it is not known: it was made through podman's API.
    """
    words: list[str] = list(inspected["Config"].get("CreateCommand") or [])
    verb = next((n for n, word in enumerate(words) if n > 0 and word in ("run", "create")), 0)
    return [*words[1:verb], "run", "--detach", *words[verb + 1 :]] if verb else []


def addresses(network: Inspected) -> list[tuple[str, int, str]]:
    """Return the addresses of a container in a network: address, length of the prefix, gateway."""
    found = [(network.get("IPAddress"), network.get("IPPrefixLen"), network.get("Gateway"))]
    found += [(e["Addr"], e["PrefixLength"], None) for e in network.get("SecondaryIPAddresses") or []]
    found += [
        (
            network.get("GlobalIPv6Address"),
            network.get("GlobalIPv6PrefixLen"),
            network.get("IPv6Gateway"),
        )
    ]
    found += [(e["Addr"], e["PrefixLength"], None) for e in network.get("SecondaryIPv6Addresses") or []]
    return [(str(address), int(length or 0), gateway or "") for address, length, gateway in found if address]


def network_status(networks: Mapping[str, Inspected], interfaces: Mapping[str, str]) -> dict[str, Any]:
    """Return what podman calls the network status (container-libs, libnetwork/types, ``StatusBlock``)."""
    status = {}
    for number, (name, network) in enumerate(networks.items()):
        mac = network.get("MacAddress") or ""
        subnets = [
            {"ipnet": f"{ip}/{length}", **({"gateway": gateway} if gateway else {})}
            for ip, length, gateway in addresses(network)
        ]
        interface = interfaces.get(mac, f"eth{number}")
        status[name] = {"interfaces": {interface: {"subnets": subnets, "mac_address": mac}}}
    return status


def published(inspected: Inspected) -> tuple[int, ...]:
    """Return the host's ports that lead to a container."""
    ports = (inspected.get("NetworkSettings") or {}).get("Ports") or {}
    return tuple(sorted({int(each["HostPort"]) for bound in ports.values() for each in bound or []}))


def shm(host: Host, directory: str) -> str:
    """Return where a container's own ``/dev/shm`` is mounted in the host, or nothing."""
    where = f"{directory}/shm"
    mounts = host.read_or("/proc/self/mounts", "").splitlines()
    return where if any(line.split()[1] == where for line in mounts) else ""


def places(host: Host, inspected: Inspected) -> list[tuple[str, bool]]:
    """Return mount points in another mount whose source is below ``/run``, and whether each is a directory.

    The runtime has made them once; podman makes an empty source anew (that of ``/run/secrets``).
    """
    spec = json.loads(host.read_or(inspected.get("OCIConfigPath") or "", "{}") or "{}")
    binds = {m["destination"]: m["source"] for m in spec.get("mounts") or [] if m.get("type") == "bind"}
    found = []
    for destination, source in binds.items():
        outer = [each for each in binds if destination.startswith(f"{each}/")]
        if outer and binds[max(outer, key=len)].startswith("/run/"):
            place = binds[max(outer, key=len)] + destination.removeprefix(max(outer, key=len))
            found.append((place, host.path(source).is_dir()))
    return found


def shared_files(host: Host, inspected: Inspected, container: Container) -> str:
    """Return a file in the host's ``/dev/shm`` that a container has open or mapped, or nothing."""
    if inspected["HostConfig"].get("IpcMode") != "host":
        return ""
    for pid in cgroup.pids(host, container.cgroup):
        maps = host.read_or(f"/proc/{pid}/maps", "").splitlines()
        names = [line.partition("/")[1] + line.partition("/")[2] for line in maps]
        for descriptor in host.list(f"/proc/{pid}/fd"):
            with suppress(OSError):
                names.append(os.readlink(host.path(f"/proc/{pid}/fd/{descriptor}")))
        for name in names:
            if name.startswith("/dev/shm/") and not name.endswith("(deleted)"):
                return name
    return ""
