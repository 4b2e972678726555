# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.engines.podman_unit``: a container of Quadlet, a podman and a systemctl that answer."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.oci import put_crun
from builders.programs import Programs

from upgrade import paths
from upgrade.engines.base import Container, Images
from upgrade.engines.podman import PodmanEngine
from upgrade.engines.unit import UnitEngine
from upgrade.errors import Refusal, UpgradeError
from upgrade.services import command, dropin

ID = "3f" * 32
STATIC = f"/var/lib/containers/storage/overlay-containers/{ID}/userdata"
SERVICE = "/system.slice/web.service"
PAYLOAD = f"{SERVICE}/libpod-payload-{ID}"
SHOWN = {
    "Id": "web.service",
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Type": "notify",
    "MainPID": "490",
    "ControlGroup": SERVICE,
    "NotifyAccess": "all",
    "SyslogIdentifier": "web",
    "StandardOutput": "journal",
    "StandardError": "inherit",
}


class Quadlet:
    """A host with one container that is a service."""

    def __init__(self, machine: Machine, programs: Programs) -> None:
        self.machine = machine
        self.programs = programs
        self.inspected: dict[str, Any] = {
            "Id": ID,
            "Name": "systemd-web",
            "StaticDir": STATIC,
            "OCIRuntime": "crun",
            "ConmonPidFile": str(machine.root / "run/conmon.pid"),
            "State": {"ConmonPid": 490},
            "Config": {"Labels": {"PODMAN_SYSTEMD_UNIT": "web.service"}, "sdNotifyMode": "conmon"},
            "HostConfig": {"NetworkMode": "host"},
        }
        for program in ("sh", "cat", "sleep", "touch"):
            programs.real(program)
        annotations = {"io.container.manager": "libpod"}
        put_crun(machine, ID, 500, annotations=annotations, namespaces=[{"type": "pid"}])
        status = machine.root / f"run/crun/{ID}/status"
        status.write_text(status.read_text().replace(f"/crun/{ID}", PAYLOAD))
        machine.cgroup(SERVICE, [])
        machine.cgroup(f"{SERVICE}/runtime", [490])
        machine.cgroup(PAYLOAD, [500, 501])
        machine.process(490, name="conmon")
        (machine.root / STATIC.lstrip("/")).mkdir(parents=True)
        self.podman()
        self.show()

    def podman(self, rest: str = ":") -> None:
        """Have ``inspect`` answer, and anything else do ``rest``."""
        text = json.dumps([self.inspected])
        self.programs.add("podman", f"if [ \"$2\" = inspect ]; then echo '{text}'; else {rest}\nfi")

    def show(self, **values: str) -> None:
        """Set what systemctl shows."""
        text = "".join(f"{name}={value}\n" for name, value in {**SHOWN, **values}.items())
        (self.programs.directory / "properties").write_text(text)
        self.programs.add("systemctl", f'[ "$1" = show ] && cat {self.programs.directory}/properties; exit 0')

    def find(self) -> Container:
        """Return the container as it travels."""
        found = PodmanEngine(self.machine.host).find("systemd-web")
        return Container(**json.loads(json.dumps({name: getattr(found, name) for name in found.__slots__})))


@pytest.fixture
def quadlet(machine: Machine, programs: Programs, here: Path) -> Quadlet:
    return Quadlet(machine, programs)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    for name in ("images", "work"):
        (tmp_path / name).mkdir()
    return Images(tmp_path / "images", tmp_path / "work", 20.0)


def test_its_service_travels_with_it(quadlet: Quadlet) -> None:
    found = quadlet.find()
    assert found.service is not None
    name, data = found.service
    assert name == "web.service"
    text = dropin.text(quadlet.machine.host, data)
    assert f"After={paths.RESTORED_UNIT}\n" in text, "the boot's own start waits until it is back"
    assert "NotifyAccess=all\nSyslogIdentifier=web\n" in text
    assert (data["watchdog"], data["conmon"]) == (False, quadlet.inspected["ConmonPidFile"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.show(MainPID="491"), "not the main process of web.service"),
        (lambda q: q.show(ControlGroup="/system.slice/other.service"), "is not beneath that"),
        (lambda q: q.show(Type="oneshot"), "Type=oneshot"),
        (lambda q: q.show(ActiveState="failed"), "failed"),
        (lambda q: q.inspected["Config"].update(sdNotifyMode="container"), "Notify=true"),
        (
            lambda q: (
                q.machine.cgroup(f"{SERVICE}/runtime", [490, 498]),
                q.machine.process(498, name="more"),
            ),
            r"498 \(more\)",
        ),
    ],
)
def test_what_systemd_could_not_take_over_is_refused(
    quadlet: Quadlet, change: Callable[[Quadlet], object], message: str
) -> None:
    quadlet.machine.process(491)
    assert quadlet.find()
    change(quadlet)
    quadlet.podman()
    with pytest.raises(Refusal, match=message) as caught:
        quadlet.find()
    assert caught.value.hint


def test_the_service_alone_is_refused_with_the_better_way(quadlet: Quadlet) -> None:
    with pytest.raises(Refusal, match="podman's containers") as caught:
        UnitEngine(quadlet.machine.host).find("web")
    assert "--container" in str(caught.value.hint)


def start(quadlet: Quadlet, directory: Path) -> threading.Thread:
    """Have ``systemctl start`` run the command of the drop-in, in a thread, and return when that has ended."""
    begun, status = directory / "begun", directory / "status"
    wait = f"touch {begun}; while [ ! -e {status} ]; do sleep 0.01; done; exit $(cat {status})"
    quadlet.programs.add("systemctl", f'case "$1" in start) [ "$2" = --no-block ] || {{ {wait}; }};; esac')

    def run() -> None:
        while not begun.exists():
            pass
        code = command.main("web.service")
        (directory / "new").write_text(str(int(code)))
        (directory / "new").rename(status)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_its_start_restores_it(
    quadlet: Quadlet, images: Images, tmp_path: Path, listening: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Host", lambda: quadlet.machine.host)
    found = quadlet.find()
    quadlet.podman(
        f'[ "$2" != restore ] || echo ${{INVOCATION_ID:+4711}} > {quadlet.inspected["ConmonPidFile"]}'
    )
    thread = start(quadlet, tmp_path)
    unlocked: list[str] = []
    pid = PodmanEngine(quadlet.machine.host).restore(
        found, images, lambda: unlocked.append(quadlet.programs.calls("podman")[-1][2])
    )
    thread.join()
    assert (pid, unlocked) == (500, ["restore"])
    assert (paths.RUNTIME / "web.service.pid").read_text() == "4711\n"
    assert ["systemctl", "start", "--job-mode=ignore-dependencies", "--", "web.service"] in (
        quadlet.programs.calls("systemctl")
    )


def test_one_that_cannot_be_restored_is_started_by_systemd(
    quadlet: Quadlet, images: Images, tmp_path: Path, listening: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Host", lambda: quadlet.machine.host)
    found = quadlet.find()
    quadlet.podman('[ "$2" != restore ] || { echo Error: unable; exit 125; }')
    thread = start(quadlet, tmp_path)
    engine = PodmanEngine(quadlet.machine.host)
    with pytest.raises(UpgradeError, match="unable"):
        engine.restore(found, images, lambda: pytest.fail("was not restored"))
    thread.join()
    engine.clean_up(found)
    assert quadlet.programs.calls("systemctl")[-1] == ["systemctl", "daemon-reload"]
    assert engine.cold_start(found)
    assert quadlet.programs.calls("systemctl")[-1] == [
        "systemctl",
        "start",
        "--no-block",
        "--",
        "web.service",
    ]
