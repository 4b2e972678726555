# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.engines.crun``: a state as crun writes it, and a crun that is recorded."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.oci import put_crun
from builders.programs import Programs

from upgrade.criu import messages
from upgrade.engines import bus
from upgrade.engines.base import Images
from upgrade.engines.crun import CrunEngine
from upgrade.errors import ExitStatus, Refusal, UpgradeError


@pytest.fixture
def engine(machine: Machine) -> CrunEngine:
    put_crun(machine, "web", 500)
    return CrunEngine(machine.host)


def images(tmp_path: Path) -> Images:
    for name in ("images", "work"):
        (tmp_path / name).mkdir()
    return Images(tmp_path / "images", tmp_path / "work")


def test_a_container_is_found_with_all_it_takes_to_restore_it(engine: CrunEngine) -> None:
    found = engine.find("web")
    assert (found.name, found.engine, found.cgroup, found.root_pid) == ("web", "crun", "/crun/web", 500)
    assert not found.host_pids
    assert not found.host_network
    assert found.data["root"] == "/srv/web/rootfs"
    assert not engine.is_late(found)
    json.dumps(dict(found.data))


def test_namespaces_of_the_host_are_noticed(machine: Machine, engine: CrunEngine) -> None:
    put_crun(machine, "host", 600, namespaces=[{"type": "mount"}])
    found = engine.find("host")
    assert found.host_pids
    assert found.host_network


def test_what_podman_runs_is_left_to_podman(machine: Machine, engine: CrunEngine) -> None:
    put_crun(machine, "0123", 600, annotations={"io.container.manager": "libpod"})
    assert [c.name for c in engine.available()] == ["web"]
    assert (engine.knows("web"), engine.knows("0123"), engine.knows("other")) == (True, False, False)
    assert sorted(engine.names()) == ["0123", "web"]
    assert "podman" in refused(engine, "0123").message


def refused(engine: CrunEngine, name: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        engine.find(name)
    assert caught.value.status == ExitStatus.REFUSED
    assert caught.value.subject == name
    assert caught.value.hint
    return caught.value


def test_what_cannot_come_back_is_refused(machine: Machine, engine: CrunEngine) -> None:
    assert "web" in str(refused(engine, "none").hint)
    put_crun(machine, "ended", 700)
    machine.file("/sys/fs/cgroup/crun/ended/cgroup.procs", "")
    assert "does not run" in refused(engine, "ended").message
    put_crun(machine, "joins", 710, namespaces=[{"type": "network", "path": "/run/netns/x"}])
    assert "/run/netns/x" in refused(engine, "joins").message
    put_crun(machine, "shown", 715, terminal=True)
    assert "terminal" in refused(engine, "shown").message
    put_crun(machine, "paused", 720)
    machine.file("/sys/fs/cgroup/crun/paused/cgroup.freeze", "1")
    assert "paused" in refused(engine, "paused").message
    put_crun(machine, "entered", 730)
    machine.file("/sys/fs/cgroup/crun/entered/cgroup.procs", "730\n731\n799")
    machine.process(799, parent=5)
    assert "[799]" in refused(engine, "entered").message
    assert "crun exec" in refused(engine, "entered").message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_state_that_cannot_be_read_is_refused(machine: Machine, engine: CrunEngine, content: str) -> None:
    machine.file("/run/crun/broken/status", content)
    refused(engine, "broken")


def test_the_dump_names_what_lies_outside(machine: Machine, engine: CrunEngine) -> None:
    machine.file("/proc/kcore", "x")
    (machine.root / "proc/acpi").mkdir()
    net = machine.file("/run/netns/web", "x")
    put_crun(machine, "joins", 710, namespaces=[{"type": "network", "path": "/run/netns/web"}])
    options = messages().criu_opts()
    engine.dump_options(engine.read("joins"), options)
    external = {entry.key: entry.val for entry in options.ext_mnt}
    assert external == {"/data": "/data", "/etc/hosts": "/etc/hosts", "/proc/kcore": "/proc/kcore"}
    assert list(options.external) == [f"net[{net.stat().st_ino}]:extRootNetNS"]
    assert options.root == "/srv/joins/rootfs"
    assert options.orphan_pts_master


def test_the_descriptors_are_written_where_crun_looks(engine: CrunEngine, tmp_path: Path) -> None:
    engine.prepare_images(engine.find("web"), Images(tmp_path, tmp_path))
    assert json.loads((tmp_path / "descriptors.json").read_text()) == ["/dev/null", "pipe:[1]", "pipe:[2]"]


def test_crun_restores_and_tells_the_new_process(
    machine: Machine, engine: CrunEngine, programs: Programs, tmp_path: Path, here: Path
) -> None:
    found = engine.find("web")
    programs.add("crun")
    put_crun(machine, "web", 4711)
    unlocked: list[int] = []
    pid = engine.restore(found, images(tmp_path), lambda: unlocked.append(len(programs.calls("crun"))))
    assert (pid, unlocked) == (4711, [1])
    (call,) = programs.calls("crun")
    assert "restore" in call
    assert call[-1] == "web"
    for option, value in (
        ("--image-path", str(tmp_path / "images")),
        ("--work-path", str(tmp_path / "work")),
        ("--bundle", "/srv/web"),
    ):
        assert call[call.index(option) + 1] == value
    assert {"--detach", "--tcp-established", "--ext-unix-sk", "--file-locks"} <= set(call)
    assert "--systemd-cgroup" not in call


def test_a_cgroup_of_systemd_waits_for_the_bus(
    machine: Machine, engine: CrunEngine, programs: Programs, here: Path
) -> None:
    put_crun(machine, "scoped", 600, systemd=True)
    found = engine.find("scoped")
    assert engine.is_late(found)
    programs.add("crun")
    with socket.socket(socket.AF_UNIX) as server:
        place = machine.root / bus.SOCKET.lstrip("/")
        place.parent.mkdir(parents=True)
        server.bind(str(place))
        server.listen()
        assert engine.cold_start(found)
    (call,) = programs.calls("crun")
    assert "--systemd-cgroup" in call
    assert call.index("--systemd-cgroup") < call.index("run")


def test_a_bus_that_does_not_come_is_told(machine: Machine) -> None:
    with pytest.raises(UpgradeError, match="does not listen"):
        bus.wait(machine.host, 0.05)


def test_what_crun_says_is_told(engine: CrunEngine, programs: Programs, tmp_path: Path, here: Path) -> None:
    programs.add("crun", '[ "$1" != --log ] || echo "unable" > "$2"; exit 1')
    with pytest.raises(UpgradeError, match="unable"):
        engine.cold_start(engine.find("web"))
    made = images(tmp_path)
    (made.work / "restore.log").write_text("(00.1) Error (criu/a.c:1): why\n")
    with pytest.raises(UpgradeError, match=r"Error \(criu/a\.c:1\): why"):
        engine.restore(engine.find("web"), made, lambda: pytest.fail("was not restored"))


def test_leftovers_are_deleted_whatever_crun_says(
    machine: Machine, engine: CrunEngine, programs: Programs
) -> None:
    found: Any = engine.find("web")
    programs.add("crun", "exit 1")
    engine.clean_up(found)
    assert programs.calls("crun") == [["crun", "delete", "--force", "web"]]
    assert machine.written("/sys/fs/cgroup/crun/web/cgroup.kill") == ["1"]
    assert engine.runs(found)
    (machine.root / "run/crun/web/status").unlink()
    assert not engine.runs(found)
