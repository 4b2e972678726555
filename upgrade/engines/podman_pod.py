# SPDX-License-Identifier: MIT
"""podman's pods: containers that share the network, the IPC objects and the host name of their infra container.

Each is dumped by itself. Their restores join the namespaces of the infra container, which is restored first. Objects
of System V IPC are in the images of each, and can be made once only: by the one that has them mapped.
Until all of a pod are back nothing is delivered in its network: a packet from one to another that is not there yet
would be answered with RST.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from upgrade import cgroup, files, paths
from upgrade.engines.base import Container, Images
from upgrade.engines.podman_command import COMMAND_S
from upgrade.engines.podman_inspect import Inspected
from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.process import run

SHARED = ("network", "ipc", "uts")
RESTORE_S = 300.0
POLL_S = 0.02
TABLE = "inet seamless_upgrade_pod"
# input only: a task that sends must not be told so
LOCK = f"table {TABLE} {{ chain input {{ type filter hook input priority -300; policy drop; }}; }}\n"
BACK, FAILED = "back", "failed"


def of(
    host: Host,
    inspected: Inspected,
    container: Container,
    all_inspected: Sequence[Inspected],
    running: Mapping[str, Container],
) -> dict[str, Any]:
    """Return what the restore has to know of a container's pod; nothing if it is in none.

    :param all_inspected: all that run, and what the runtimes say of them: ``running``
    :raises Refusal: if its pod cannot come back
    """
    pod = inspected.get("Pod")
    if not pod:
        if inspected.get("Dependencies"):
            raise Refusal(
                "shares namespaces with other containers outside of a pod",
                subject=container.name,
                hint="run them in a pod (podman pod create), or leave it out",
            )
        return {}
    members = [each for each in all_inspected if each.get("Pod") == pod]
    infra = next((each["Id"] for each in members if each.get("IsInfra")), None)
    if infra is None:
        raise Refusal("is in a pod without an infra container", subject=container.name, hint="leave it out")
    _refuse_namespaces(container, infra, running[infra].root_pid)
    return {
        "infra": infra,
        "members": {each["Id"]: each["Name"] for each in members},
        "ipc": _ipc_owner(host, container, infra, members, running),
        "locked": not running[infra].host_network,
    }


def id_files(inspected: Inspected) -> list[list[str]]:
    """Return where the id of a pod is written to (``--pod-id-file``) if that ends with the kernel, with the id."""
    if not inspected.get("IsInfra"):
        return []
    done = run(["podman", "pod", "inspect", inspected["Pod"]], timeout=COMMAND_S)
    found = json.loads(done.stdout)
    found = found[0] if isinstance(found, list) else found
    words = found.get("CreateCommand") or []
    pairs = [word.partition("=")[::2] for word in words] + list(itertools.pairwise(words))
    names = {value for option, value in pairs if option == "--pod-id-file"}
    return [[name, inspected["Pod"]] for name in names if name.startswith("/run/")]


def _refuse_namespaces(container: Container, infra: str, infra_pid: int) -> None:
    for kind, path in container.data["namespaces"].items():
        if path and container.data["id"] != infra and (kind, path) not in _places(infra_pid):
            raise Refusal(
                f"joins the namespace {path} ({kind}), which podman cannot give back",
                subject=container.name,
                hint="share no more in the pod than podman pod create does by default: net, ipc and uts",
            )


def _places(pid: int) -> set[tuple[str, str]]:
    """Return the namespaces of an infra container, as those who join them name them."""
    return {(kind, f"/proc/{pid}/ns/{'net' if kind == 'network' else kind}") for kind in SHARED}


def _ipc_owner(
    host: Host,
    container: Container,
    infra: str,
    members: Sequence[Inspected],
    running: Mapping[str, Container],
) -> str:
    """Return who restores the objects of System V IPC: CRIU puts shared memory only into those that it made."""
    users = [each for each in members if _maps_sysv(host, running[each["Id"]])]
    if len(users) > 1:
        raise Refusal(
            f"shares memory of System V with others of its pod ({', '.join(e['Name'] for e in users)}), which CRIU "
            "cannot restore",
            subject=container.name,
            hint="leave the pod out, or give its containers an IPC namespace each (podman pod create --share net,uts)",
        )
    return str(users[0]["Id"]) if users else infra


def _maps_sysv(host: Host, container: Container) -> bool:
    return any(
        " /SYSV" in host.read_or(f"/proc/{pid}/maps", "") for pid in cgroup.pids(host, container.cgroup)
    )


def refuse_parts(containers: Sequence[Container]) -> None:
    """Refuse to preserve a part of a pod."""
    chosen = {each.data.get("id") for each in containers}
    for container in containers:
        members = (container.data.get("pod") or {}).get("members", {})
        left_out = [name for identity, name in members.items() if identity not in chosen]
        if left_out:
            raise Refusal(
                f"is in a pod with {', '.join(left_out)}, which would not be preserved",
                subject=container.name,
                hint=f"add {' '.join(f'--container {name}' for name in left_out)}, or take --all",
            )


def capture(container: Container, images: Images) -> None:
    """Take the objects of System V IPC out of the images of all but one."""
    pod = container.data["pod"]
    if pod and pod["ipc"] != container.data["id"] and _shares_ipc(container):
        for kind in ("shm", "msg", "sem"):
            for file in images.directory.glob(f"ipcns-{kind}-*.img"):
                file.unlink()


def _shares_ipc(container: Container) -> bool:
    return container.data["id"] == container.data["pod"]["infra"] or bool(
        container.data["namespaces"].get("ipc")
    )


def await_turn(host: Host, container: Container, limit_s: float | None, pid_of: Callable[[str], int]) -> None:
    """Return when those are back whose namespaces and IPC objects a container needs; then it can be restored.

    :param pid_of: returns the root of a container
    :raises UpgradeError: if they cannot be restored
    """
    pod = container.data["pod"]
    if container.data["id"] == pod["infra"]:
        return
    needed = dict.fromkeys(each for each in (pod["infra"], pod["ipc"]) if each != container.data["id"])
    deadline = time.monotonic() + (limit_s or RESTORE_S)
    for identity in needed:
        while (state := files.read(_mark(identity))) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if state != BACK:
            raise UpgradeError(f"{pod['members'][identity]} of its pod is not back", subject=container.name)
    _join(host, container, pid_of(pod["infra"]))


def _join(host: Host, container: Container, pid: int) -> None:
    """Let a container's configuration name the namespaces that there are now."""
    file = host.path(f"{container.data['directory']}/config.json")
    spec = json.loads(file.read_text())
    for namespace in spec["linux"]["namespaces"]:
        if namespace.get("path"):
            namespace["path"] = f"/proc/{pid}/ns/{os.path.basename(namespace['path'])}"
    files.write(file, json.dumps(spec))


def arrived(container: Container, pid_of: Callable[[str], int]) -> None:
    """Note that a container is back, and lock or unlock the network inside of its pod."""
    pod = container.data["pod"]
    if container.data["id"] == pod["infra"] and pod["locked"]:
        _nft(pid_of(pod["infra"]), LOCK)
    _note(container, BACK, pid_of)


def failed(container: Container, pid_of: Callable[[str], int]) -> None:
    """Note that a container is not restored."""
    with suppress(OSError, UpgradeError):  # the infra container has ended, and its network with it
        _note(container, FAILED, pid_of)


def expect(containers: Sequence[Container]) -> None:
    """Forget what became of containers that are to be restored again."""
    for container in containers:
        if container.data["pod"]:
            _mark(container.data["id"]).unlink(missing_ok=True)


def _note(container: Container, state: str, pid_of: Callable[[str], int]) -> None:
    pod = container.data["pod"]
    files.write(_mark(container.data["id"]), state)
    states = {identity: files.read(_mark(identity)) for identity in pod["members"]}
    if pod["locked"] and None not in states.values() and states[pod["infra"]] == BACK:
        _nft(pid_of(pod["infra"]), f"table {TABLE}\ndelete table {TABLE}\n")


def _nft(pid: int, rules: str) -> None:
    run(["nsenter", f"--net=/proc/{pid}/ns/net", "nft", "-f", "-"], input=rules)


def _mark(identity: str) -> Path:
    return paths.RUNTIME / "pods" / identity
