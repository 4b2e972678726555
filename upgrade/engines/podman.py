# SPDX-License-Identifier: MIT
"""podman's containers: dumped as their runtime would, restored by ``podman container restore``.

Restoring through podman sets up the storage, the network, conmon and podman's own records, so that its other commands
work afterwards. podman believes that it made the checkpoint itself: what it writes beside CRIU's images is supplied
(podman 5.4, libpod/container_internal_common.go, ``checkpoint`` and ``restore``). It needs systemd's bus, which comes
late in the boot. Containers that are a service are in ``podman_unit``, those in pods in ``podman_pod``.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from upgrade import cgroup, paths
from upgrade.criu import log_errors
from upgrade.engines import (
    health,
    podman_command,
    podman_files,
    podman_inspect,
    podman_pod,
    podman_state,
    podman_unit,
)
from upgrade.engines.base import RESTORED, Container, Images, Unlock
from upgrade.engines.crun import CrunEngine
from upgrade.engines.oci import has_tasks, refuse_state, strangers
from upgrade.engines.podman_command import COMMAND_S
from upgrade.engines.runc import RuncEngine
from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.process import run

CHECK_S = 10.0
CHECK_POLL_S = 0.05


class PodmanEngine:
    """Preserves containers that podman started, as root."""

    name = "podman"
    holds = False
    lazy = False

    def __init__(self, host: Host) -> None:
        self.host = host
        self.runtimes = (CrunEngine(host), RuncEngine(host))
        self._inspected: list[dict[str, Any]] = []

    def available(self) -> list[Container]:
        """Return podman's running containers."""
        running = self._running()
        return [self._container(each, running) for each in self._inspect(running)]

    def knows(self, name: str) -> bool:
        """Tell whether podman runs a container of this name or id."""
        running = self._running()
        return name in running or any(name in (e["Name"], e["Id"][:12]) for e in self._inspect(running))

    def find(self, name: str) -> Container:
        """Return the running container ``name``, an id is a name, too."""
        running = self._running()
        inspected = self._inspect(running)
        found = [e for e in inspected if name in (e["Name"], e["Id"], e["Id"][:12])]
        if not found:
            known = ", ".join(sorted(e["Name"] for e in inspected)) or "none"
            raise Refusal(
                "podman runs no such container as root",
                subject=name,
                hint=f"running containers: {known}; those of other users cannot be preserved",
            )
        podman_inspect.refuse_what_cannot_come_back(found[0])
        container = self._container(found[0], running)
        if {"user", "NEWUSER"} & set(container.data["namespaces"]):
            raise Refusal(
                "has a user namespace of its own, with which podman cannot restore",
                subject=container.name,
                hint="start it without --userns, or leave it out",
            )
        if shared := podman_inspect.shared_files(self.host, found[0], container):
            raise Refusal(
                f"has {shared} open, which is in the host's memory and ends with this kernel",
                subject=container.name,
                hint="start it without --ipc host",
            )
        if container.data["removed"]:
            self._refuse_unknown_state(container)
        pod = podman_pod.of(self.host, found[0], container, inspected, running)
        service = podman_unit.of(self.host, found[0], container)
        id_files = [*container.data["id_files"], *(podman_pod.id_files(found[0]) if service else ())]
        self._let_check_end(container)
        refuse_state(self.host, container, "podman unpause", "podman exec")
        return replace(
            container, data={**container.data, "service": service, "pod": pod, "id_files": id_files}
        )

    def _refuse_unknown_state(self, container: Container) -> None:
        file = container.data["database"]
        if not podman_state.runs(self.host, file, container.data["id"]):
            raise Refusal(
                f"was started with --rm, and {file} does not say that it runs: podman would remove it when it finds "
                "a new kernel",
                subject=container.name,
                hint="start it without --rm",
            )

    def _let_check_end(self, container: Container) -> None:
        """Wait for a health check: it runs in the container, but ends soon (and none begins in a host at rest)."""
        deadline = time.monotonic() + CHECK_S
        while container.data["health"] and strangers(self.host, container) and time.monotonic() < deadline:
            time.sleep(CHECK_POLL_S)

    def _running(self) -> dict[str, Container]:
        """Return what the runtimes know of podman's running containers, by their ids."""
        found = {}
        for runtime in self.runtimes:
            for name in runtime.names():
                container = runtime.read(name)
                if container.data["podman"] and has_tasks(self.host, container):
                    found[name] = container
        return found

    def _inspect(self, ids: Iterable[str]) -> list[dict[str, Any]]:
        words = sorted(ids)
        if words and words != [each["Id"] for each in self._inspected]:
            done = run(["podman", "container", "inspect", *words], timeout=COMMAND_S)
            self._inspected = json.loads(done.stdout)
        return self._inspected if words else []

    def _container(self, inspected: podman_inspect.Inspected, running: Mapping[str, Container]) -> Container:
        inner = running[inspected["Id"]]
        networks = (inspected.get("NetworkSettings") or {}).get("Networks") or {}
        interfaces = _interfaces(inner.root_pid) if networks and not inner.host_network else {}
        return Container(
            name=inspected["Name"],
            engine=self.name,
            cgroup=inner.cgroup,
            root_pid=inner.root_pid,
            host_pids=inner.host_pids,
            host_network=inner.host_network,
            addresses=tuple(ip for each in networks.values() for ip, _, _ in podman_inspect.addresses(each)),
            published=podman_inspect.published(inspected) if not inner.host_network else (),
            data={
                "id": inspected["Id"],
                "directory": inspected["StaticDir"],
                "runtime": inner.engine,
                "options": dict(inner.data),
                "namespaces": inner.data["namespaces"],
                "external_descriptors": inner.data["external_descriptors"],
                "networks": podman_inspect.network_status(networks, interfaces),
                "shm": podman_inspect.shm(self.host, inspected["StaticDir"]),
                "health": health.of(inspected),
                "places": podman_inspect.places(self.host, inspected),
                "id_files": podman_inspect.id_files(inspected),
                "removed": podman_inspect.is_removed(inspected),
                "again": podman_inspect.again(inspected),
                "database": podman_state.database(inspected),
            },
        )

    def _inner(self, container: Container) -> tuple[CrunEngine | RuncEngine, Container]:
        """Return the runtime of a container, and the container as that knows it."""
        runtime = next(each for each in self.runtimes if each.name == container.data["runtime"])
        return runtime, Container(
            container.data["id"],
            runtime.name,
            container.cgroup,
            container.root_pid,
            container.host_pids,
            container.host_network,
            data=container.data["options"],
        )

    def _pid_of(self, container: Container) -> Callable[[str], int]:
        """Return what tells of the root of a container of the same runtime."""
        runtime, _ = self._inner(container)
        return lambda identity: runtime.read(identity).root_pid

    def dump_options(self, container: Container, options: Any) -> None:
        """Ask for what its runtime asks for."""
        runtime, inner = self._inner(container)
        runtime.dump_options(inner, options)
        options.ext_unix_sk = False  # its restore cannot be told of them

    def prepare_images(self, container: Container, images: Images) -> None:
        """Write what podman and its runtime read beside CRIU's images."""
        runtime, inner = self._inner(container)
        runtime.prepare_images(inner, images)
        (images.directory / podman_files.NETWORK_STATUS).write_text(json.dumps(container.data["networks"]))

    def capture(self, container: Container, images: Images) -> None:
        """Archive ``/dev/shm``: podman mounts it from the host, so that CRIU leaves it out."""
        podman_pod.capture(container, images)
        if container.data["shm"]:
            import tarfile  # not for the new kernel's path

            with tarfile.open(
                images.directory / podman_files.SHM_ARCHIVE, "w", format=tarfile.GNU_FORMAT
            ) as archive:
                archive.add(self.host.path(container.data["shm"]), ".")

    def expect(self, containers: Sequence[Container]) -> None:
        """Have podman's first call in this boot spare those that it would remove."""
        podman_pod.expect(containers)
        for file in {each.data["database"] for each in containers if each.data["removed"]}:
            ids = [e.data["id"] for e in containers if e.data["removed"] and e.data["database"] == file]
            podman_state.keep(self.host, file, ids)

    def restore(self, container: Container, images: Images, unlock: Unlock) -> int:
        """Let podman restore; it returns when the tasks run."""
        podman_files.put(self.host, container, images)
        if container.data["pod"]:
            podman_pod.await_turn(self.host, container, images.timeout_s, self._pid_of(container))
        # Its first call in a boot takes longest, and needs no bus: meanwhile that comes.
        run(["podman", "container", "exists", container.data["id"]], check=False)
        try:
            if container.service is not None:
                podman_unit.restore(self.host, container, images, unlock)
            else:
                podman_command.restore(self.host, container.data["id"], images)
            if container.data["pod"]:
                podman_pod.arrived(container, self._pid_of(container))
            (images.work / RESTORED).touch()
            podman_files.remove_links(self.host, container)
        except UpgradeError as e:
            criu = log_errors(self.host.path(f"{container.data['directory']}/restore.log"))
            raise UpgradeError(
                "; ".join([e.message.removeprefix("podman: "), *criu]), subject="podman"
            ) from e
        if container.service is None:  # else the start of the service has called it
            unlock()
        if container.data["health"]:
            health.start(container.data["id"], *container.data["health"])
        runtime, inner = self._inner(container)
        return runtime.read(inner.name).root_pid

    def cold_start(self, container: Container) -> bool:
        """Start the container afresh, as after any boot; one that podman has removed is made anew."""
        log = paths.RUNTIME / f"podman-{container.name}.log"
        identity: str = container.data["id"]
        words = ["start", identity]
        if container.service is not None:
            podman_unit.start(container.service[0])
            return True
        if container.data["removed"]:  # by now, or as soon as podman's cleanup gets to it
            run(["podman", "rm", "--force", "--ignore", "--time", "0", identity], timeout=COMMAND_S)
            words = container.data["again"]
        cgroup.remove(self.host, container.cgroup)  # crun makes it anew, and would not use another one
        if words:
            podman_command.call(self.host, words, log, COMMAND_S)
        return bool(words)

    def clean_up(self, container: Container) -> None:
        """End what a failed restore left, and take our images away from podman."""
        with suppress(UpgradeError):  # it does not answer in time: its tasks are killed nevertheless
            run(["podman", "kill", container.data["id"]], check=False, timeout=COMMAND_S)
        cgroup.kill(self.host, container.cgroup)
        if container.service is not None:
            podman_unit.clean_up(self.host, container.service[0])
        if container.data["pod"]:
            podman_pod.failed(container, self._pid_of(container))
        podman_files.remove(self.host, container)

    def runs(self, container: Container) -> bool:
        """Ask its runtime's state."""
        runtime, inner = self._inner(container)
        return runtime.runs(inner)

    def helpers(self, _container: Container) -> tuple[str, ...]:
        """Return none: podman works in our unit, its conmon has a scope of its own."""
        return ()

    def is_late(self, _container: Container) -> bool:
        """Tell that it is: podman has systemd make scopes."""
        return True


def _interfaces(pid: int) -> dict[str, str]:
    """Return the names of the network interfaces of a process by their addresses."""
    done = run(["nsenter", "--target", str(pid), "--net", "ip", "-json", "link"])
    return {link["address"]: link["ifname"] for link in json.loads(done.stdout) if "address" in link}
