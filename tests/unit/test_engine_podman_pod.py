# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.engines.podman_pod``: a pod of three containers, a podman and an nft that are recorded."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.oci import put_crun
from builders.programs import Programs

from upgrade.engines import podman_files, podman_pod
from upgrade.engines.base import Container, Images
from upgrade.engines.podman import PodmanEngine
from upgrade.errors import Refusal, UpgradeError

POD = "99" * 32
IDS = {"infra": "1a" * 32, "a": "2b" * 32, "b": "3c" * 32}
PIDS = {"infra": 500, "a": 600, "b": 700}
STORAGE = "/var/lib/containers/storage/overlay-containers"


def inspected(name: str, **other: Any) -> dict[str, Any]:
    member = name != "infra"
    return {
        "Id": IDS[name],
        "Name": name,
        "Pod": POD,
        "IsInfra": not member,
        "Dependencies": [IDS["infra"]] if member else [],
        "StaticDir": f"{STORAGE}/{IDS[name]}/userdata",
        "OCIRuntime": "crun",
        "Config": {"Labels": None},
        "HostConfig": {"NetworkMode": f"container:{IDS['infra']}" if member else "bridge"},
        **other,
    }


class Pod:
    """A host with one pod."""

    def __init__(self, machine: Machine, programs: Programs) -> None:
        self.machine = machine
        self.programs = programs
        self.known = {name: inspected(name) for name in IDS}
        programs.real("sh")
        programs.add("nsenter")
        for name, pid in PIDS.items():
            self.put(name, pid, PIDS["infra"] if name != "infra" else None)
            directory = machine.root / STORAGE.lstrip("/") / IDS[name] / "userdata"
            directory.mkdir(parents=True)
            spec = {"linux": {"namespaces": self.namespaces(PIDS["infra"] if name != "infra" else None)}}
            (directory / "config.json").write_text(json.dumps(spec))
        self.podman()

    def namespaces(self, infra: int | None, *more: dict[str, str]) -> list[dict[str, str]]:
        """Return those of a container as its configuration names them."""
        shared = {"network": "net", "ipc": "ipc", "uts": "uts"}
        joined = [
            {"type": kind, **({"path": f"/proc/{infra}/ns/{file}"} if infra else {})}
            for kind, file in shared.items()
        ]
        return [{"type": "pid"}, {"type": "mount"}, *joined, *more]

    def put(self, name: str, pid: int, infra: int | None, *more: dict[str, str]) -> None:
        """Let a container run that has joined the namespaces of the process ``infra``, or none."""
        put_crun(
            self.machine,
            IDS[name],
            pid,
            annotations={"io.container.manager": "libpod"},
            namespaces=self.namespaces(infra, *more),
        )

    def podman(self, rest: str = ":") -> None:
        """Have ``inspect`` answer, and anything else do ``rest``."""
        cases = "".join(f"{e['Id']}) echo '{json.dumps(e)}';;\n" for e in self.known.values())
        self.programs.add(
            "podman",
            'if [ "$1 $2" = "container inspect" ]; then shift 2; echo [; sep=; for id; do echo $sep; sep=,; '
            f'case "$id" in\n{cases}esac; done; echo ]; else {rest}\nfi',
        )

    def find(self) -> dict[str, Container]:
        """Return the containers as they travel."""
        found = [PodmanEngine(self.machine.host).find(name) for name in self.known]
        travelled = [
            Container(**json.loads(json.dumps({n: getattr(each, n) for n in each.__slots__})))
            for each in found
        ]
        return {each.name: each for each in travelled}

    def spec(self, name: str) -> Any:
        """Return the configuration that podman finds."""
        return json.loads(self.machine.host.read(f"{STORAGE}/{IDS[name]}/userdata/config.json"))


@pytest.fixture
def pod(machine: Machine, programs: Programs, here: Path) -> Pod:
    return Pod(machine, programs)


def images(directory: Path, name: str) -> Images:
    for kind in ("images", "work"):
        (directory / name / kind).mkdir(parents=True)
    return Images(directory / name / "images", directory / name / "work", 20.0)


def test_each_knows_the_whole_pod(pod: Pod) -> None:
    found = pod.find()
    for container in found.values():
        assert container.data["pod"] == {
            "infra": IDS["infra"],
            "members": {identity: name for name, identity in IDS.items()},
            "ipc": IDS["infra"],
            "locked": True,
        }
        assert container.service is None
    podman_pod.refuse_parts(list(found.values()))


@pytest.mark.parametrize(
    "option", [["--pod-id-file=/run/x.pod-id"], ["--pod-id-file", "/run/x.pod-id"], ["--pod-id-file=/root/x"]]
)
def test_a_pod_that_is_a_service_travels_with_it(
    pod: Pod, option: list[str], tmp_path: Path, listening: None
) -> None:
    infra = inspected("infra", State={"ConmonPid": 490}, ConmonPidFile="/run/x.pid")
    infra["Config"]["Labels"] = {"PODMAN_SYSTEMD_UNIT": "x-pod.service"}
    pod.known["infra"] = infra
    pod.machine.process(490, name="conmon")
    pod.machine.cgroup("/system.slice/x-pod.service", [490])
    shown = {
        "Id": "x-pod.service",
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "Type": "forking",
        "MainPID": "490",
        "ControlGroup": "/system.slice/x-pod.service",
    }
    pod.programs.real("cat")
    text = "".join(f"{key}={value}\n" for key, value in shown.items())
    (pod.programs.directory / "properties").write_text(text)
    pod.programs.add("systemctl", f"cat {pod.programs.directory}/properties")
    answer = json.dumps({"CreateCommand": ["podman", "pod", "create", *option, "--name", "x"]})
    pod.podman(f"[ \"$1\" != pod ] || echo '{answer}'")
    found = pod.find()
    service = found["infra"].service
    assert service is not None
    assert service[0] == "x-pod.service"
    assert found["a"].service is None
    expected = [["/run/x.pod-id", POD]] if "/run" in option[-1] else []
    assert found["infra"].data["id_files"] == expected
    podman_files.put(pod.machine.host, found["infra"], images(tmp_path, "infra"))
    for file, identity in expected:
        assert pod.machine.host.read(file) == identity


def test_a_part_of_a_pod_is_refused(pod: Pod) -> None:
    found = pod.find()
    with pytest.raises(Refusal, match="in a pod with infra, b") as caught:
        podman_pod.refuse_parts([found["a"]])
    assert "--container infra --container b" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.known["a"].update(Pod=""), "outside of a pod"),
        (lambda p: p.known["infra"].update(IsInfra=False), "without an infra container"),
        (lambda p: p.put("a", 600, 500, {"type": "cgroup", "path": "/proc/500/ns/cgroup"}), "ns/cgroup"),
        (lambda p: p.put("a", 600, 499), "/proc/499/ns/net"),
        (
            lambda p: [
                p.machine.file(f"/proc/{n}/maps", "7f00-7f01 rw-s 0 00:01 0  /SYSV0000004d")
                for n in (600, 701)
            ],
            r"System V with others of its pod \(a, b\)",
        ),
    ],
)
def test_what_cannot_come_back_is_refused(pod: Pod, change: Callable[[Pod], object], message: str) -> None:
    change(pod)
    pod.podman()
    with pytest.raises(Refusal, match=message) as caught:
        PodmanEngine(pod.machine.host).find("a")
    assert caught.value.hint


def test_one_restores_the_objects_of_system_v(pod: Pod, tmp_path: Path) -> None:
    pod.machine.file("/proc/701/maps", "7f00-7f01 rw-s 0 00:01 0  /SYSV0000004d (deleted)")
    pod.put("a", 600, None)  # it has none in common
    found = pod.find()
    left = {}
    for name, container in found.items():
        place = images(tmp_path, name)
        for kind in ("shm", "msg", "sem", "var"):
            (place.directory / f"ipcns-{kind}-9.img").touch()
        PodmanEngine(pod.machine.host).capture(container, place)
        left[name] = len(list(place.directory.iterdir()))
    assert left == {"infra": 1, "a": 4, "b": 4}


def test_they_come_back_one_after_the_other(pod: Pod, tmp_path: Path, listening: None) -> None:
    """Begun in the wrong order, all at once."""
    pod.machine.file("/proc/601/maps", "7f00-7f01 rw-s 0 00:01 0  /SYSV0000004d (deleted)")
    found = pod.find()
    engine = PodmanEngine(pod.machine.host)
    engine.expect(list(found.values()))
    pod.put("infra", 4500, None)
    unlocked: list[str] = []

    def restore(name: str) -> None:
        PodmanEngine(pod.machine.host).restore(
            found[name], images(tmp_path, name), lambda: unlocked.append(name)
        )

    threads = [threading.Thread(target=restore, args=(name,)) for name in ("b", "a", "infra")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    restored = [words[-1] for words in pod.programs.calls("podman") if words[2] == "restore"]
    assert restored == [IDS[name] for name in ("infra", "a", "b")]
    for name in ("a", "b"):
        paths = {n["type"]: n.get("path") for n in pod.spec(name)["linux"]["namespaces"]}
        assert paths == {
            "pid": None,
            "mount": None,
            "network": "/proc/4500/ns/net",
            "ipc": "/proc/4500/ns/ipc",
            "uts": "/proc/4500/ns/uts",
        }
    assert {*pod.programs.calls("nsenter")[0]} >= {"--net=/proc/4500/ns/net", "nft"}
    rules = pod.programs.inputs("nsenter")
    assert rules[0] == podman_pod.LOCK
    assert all("delete table" in each for each in rules[1:])
    assert len(rules) > 1
    assert sorted(unlocked) == ["a", "b", "infra"]


def test_the_host_s_network_is_not_locked(pod: Pod, tmp_path: Path, listening: None) -> None:
    namespaces = [{"type": "pid"}, {"type": "ipc"}]
    put_crun(
        pod.machine,
        IDS["infra"],
        500,
        annotations={"io.container.manager": "libpod"},
        namespaces=namespaces,
    )
    pod.known = {"infra": inspected("infra", HostConfig={"NetworkMode": "host"})}
    for name in ("a", "b"):
        (pod.machine.root / "run/crun" / IDS[name] / "status").unlink()
    pod.podman()
    found = pod.find()["infra"]
    assert not found.data["pod"]["locked"]
    PodmanEngine(pod.machine.host).restore(found, images(tmp_path, "infra"), lambda: None)
    assert pod.programs.calls("nsenter") == []


def test_without_its_infra_container_none_is_restored(pod: Pod, tmp_path: Path, listening: None) -> None:
    found = pod.find()
    engine = PodmanEngine(pod.machine.host)
    engine.expect(list(found.values()))
    engine.clean_up(found["infra"])
    with pytest.raises(UpgradeError, match="infra of its pod is not back"):
        engine.restore(found["a"], images(tmp_path, "a"), lambda: pytest.fail("was not restored"))
    assert pod.programs.calls("nsenter") == []


def test_one_that_fails_does_not_keep_the_others_locked(pod: Pod, tmp_path: Path, listening: None) -> None:
    found = pod.find()
    engine = PodmanEngine(pod.machine.host)
    engine.expect(list(found.values()))
    for name in ("infra", "a"):
        engine.restore(found[name], images(tmp_path, name), lambda: None)
    assert pod.programs.inputs("nsenter") == [podman_pod.LOCK]
    engine.clean_up(found["b"])
    assert "delete table" in pod.programs.inputs("nsenter")[-1]
    engine.expect([found["b"]])  # it is tried again
    engine.restore(found["b"], images(tmp_path, "b"), lambda: None)
