# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.engines.runc``: a state as runc writes it, and a runc that is recorded."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.programs import Programs

from upgrade.criu import messages
from upgrade.engines.base import Container, Images
from upgrade.engines.runc import RuncEngine
from upgrade.errors import ExitStatus, Refusal, UpgradeError


def state(name: str, pid: int, **config: Any) -> dict[str, Any]:
    """Return ``state.json`` as runc 1.1 writes it, shortened."""
    return {
        "id": name,
        "init_process_pid": pid,
        "cgroup_paths": {"": f"/sys/fs/cgroup/runc/{name}"},
        "external_descriptors": ["/dev/null", "pipe:[1]", "pipe:[2]"],
        "config": {
            "rootfs": f"/srv/{name}/rootfs",
            "labels": [f"bundle=/srv/{name}=1", "org.example"],
            "namespaces": [{"type": "NEWNS", "path": ""}, {"type": "NEWPID", "path": ""}, {"type": "NEWNET"}],
            "mounts": [
                {"device": "bind", "destination": f"/srv/{name}/rootfs/data"},
                {"device": "bind", "destination": "/etc/hosts"},
                {"device": "proc", "destination": "/proc"},
            ],
            "mask_paths": ["/proc/kcore", "/proc/acpi", "/proc/none"],
            "devices": [{"path": "/dev/null"}],
            "cgroups": {"path": f"/runc/{name}"},
            **config,
        },
    }


def put(machine: Machine, name: str, pid: int, **config: Any) -> None:
    machine.file(f"/run/runc/{name}/state.json", json.dumps(state(name, pid, **config)))
    machine.cgroup(f"/runc/{name}", [pid, pid + 1])
    machine.process(pid, parent=1)
    machine.process(pid + 1, parent=pid, session=pid)


@pytest.fixture
def engine(machine: Machine) -> RuncEngine:
    put(machine, "web", 500)
    return RuncEngine(machine.host)


def test_a_container_is_found_with_all_it_takes_to_restore_it(engine: RuncEngine) -> None:
    found = engine.find("web")
    assert (found.name, found.engine, found.cgroup, found.root_pid) == ("web", "runc", "/runc/web", 500)
    assert not found.host_pids
    assert not found.host_network
    assert found.data["bundle"] == "/srv/web=1"
    assert [m["destination"] for m in found.data["mounts"]] == ["/srv/web/rootfs/data", "/etc/hosts"]
    json.dumps(dict(found.data))


def test_namespaces_of_the_host_are_noticed(machine: Machine, engine: RuncEngine) -> None:
    put(
        machine,
        "host",
        600,
        namespaces=[{"type": "NEWNS", "path": ""}],
        labels=None,
        mounts=None,
        devices=None,
    )
    found = engine.find("host")
    assert found.host_pids
    assert found.host_network


def test_only_what_runs_is_available(machine: Machine, engine: RuncEngine) -> None:
    put(machine, "ended", 700)
    machine.file("/sys/fs/cgroup/runc/ended/cgroup.procs", "")
    put(machine, "gone", 800)
    (machine.root / "proc/800/exe").unlink()
    (machine.root / "run/runc/half-made").mkdir()
    assert [c.name for c in engine.available()] == ["web"]


def test_without_runc_there_is_nothing(tmp_path: Path) -> None:
    assert RuncEngine(Machine(tmp_path / "other").host).available() == []


def refused(engine: RuncEngine, name: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        engine.find(name)
    assert caught.value.status == ExitStatus.REFUSED
    assert caught.value.subject == name
    assert caught.value.hint
    return caught.value


def test_what_cannot_come_back_is_refused(machine: Machine, engine: RuncEngine) -> None:
    assert "web" in str(refused(engine, "none").hint)
    put(machine, "ended", 700)
    machine.file("/sys/fs/cgroup/runc/ended/cgroup.procs", "")
    assert "does not run" in refused(engine, "ended").message
    put(machine, "joins", 710, namespaces=[{"type": "NEWNET", "path": "/run/netns/x"}])
    assert "/run/netns/x" in refused(engine, "joins").message
    put(machine, "paused", 720)
    machine.file("/sys/fs/cgroup/runc/paused/cgroup.freeze", "1")
    assert "paused" in refused(engine, "paused").message
    put(machine, "entered", 730)
    machine.file("/sys/fs/cgroup/runc/entered/cgroup.procs", "730\n731\n799")
    machine.process(799, parent=5)
    assert "[799]" in refused(engine, "entered").message


def test_a_state_of_cgroup_version_1_is_refused(machine: Machine, engine: RuncEngine) -> None:
    old = state("old", 900) | {
        "cgroup_paths": {"memory": "/sys/fs/cgroup/memory/old", "pids": "/sys/fs/cgroup/pids/old"}
    }
    machine.file("/run/runc/old/state.json", json.dumps(old))
    assert "version 2" in str(refused(engine, "old"))


def test_a_state_that_cannot_be_read_is_refused(machine: Machine, engine: RuncEngine) -> None:
    for content in ("", "{", "[]", "{}"):
        machine.file("/run/runc/broken/state.json", content)
        refused(engine, "broken")


def test_the_dump_names_what_lies_outside(machine: Machine, engine: RuncEngine) -> None:
    (machine.root / "proc/500/root/proc/acpi").mkdir(parents=True)
    (machine.root / "proc/500/root/proc/kcore").touch()
    options = messages().criu_opts()
    engine.dump_options(engine.find("web"), options)
    external = {entry.key: entry.val for entry in options.ext_mnt}
    assert external == {
        "/data": "/data",
        "/etc/hosts": "/etc/hosts",
        "/proc/kcore": "/dev/null",
        "/dev/null": "/dev/null",
    }
    assert options.root == "/srv/web/rootfs"
    assert options.orphan_pts_master


def test_the_descriptors_are_written_where_runc_looks(engine: RuncEngine, tmp_path: Path) -> None:
    engine.prepare_images(engine.find("web"), Images(tmp_path, tmp_path))
    assert json.loads((tmp_path / "descriptors.json").read_text()) == ["/dev/null", "pipe:[1]", "pipe:[2]"]


def images(tmp_path: Path, timeout_s: float | None = None) -> Images:
    (tmp_path / "work").mkdir()
    return Images(tmp_path / "images", tmp_path / "work", timeout_s)


def test_runc_restores_and_tells_the_new_process(
    machine: Machine, engine: RuncEngine, programs: Programs, tmp_path: Path
) -> None:
    found = engine.find("web")
    programs.real("sh")
    programs.add("runc")
    machine.file("/run/runc/web/state.json", json.dumps(state("web", 4711)))
    unlocked: list[int] = []
    pid = engine.restore(found, images(tmp_path), lambda: unlocked.append(len(programs.calls("runc"))))
    assert (pid, unlocked) == (4711, [1])
    (call,) = programs.calls("runc")
    assert "restore" in call
    assert call[-1] == "web"
    for option, value in (
        ("--image-path", str(tmp_path / "images")),
        ("--work-path", str(tmp_path / "work")),
        ("--bundle", "/srv/web=1"),
    ):
        assert call[call.index(option) + 1] == value
    assert {"--detach", "--tcp-established", "--ext-unix-sk", "--file-locks"} <= set(call)
    assert "--lazy-pages" not in call


def test_on_demand_is_an_option_of_runc_s_restore(
    machine: Machine, engine: RuncEngine, programs: Programs, tmp_path: Path
) -> None:
    programs.real("sh")
    programs.add("runc")
    engine.restore(engine.find("web"), replace(images(tmp_path), lazy=True), lambda: None)
    (call,) = programs.calls("runc")
    assert call.index("restore") < call.index("--lazy-pages") < call.index("web")


@pytest.mark.parametrize("verb", ["restore", "cold_start"])
def test_a_container_that_keeps_its_streams_open_is_not_waited_for(
    machine: Machine, engine: RuncEngine, programs: Programs, tmp_path: Path, here: Path, verb: str
) -> None:
    """A detached container has runc's own standard streams (runc docs/terminals.md)."""
    programs.add("runc", "sleep 4 & exit 0")
    found = engine.find("web")
    started = time.monotonic()
    if verb == "restore":
        engine.restore(found, images(tmp_path), lambda: None)
    else:
        assert engine.cold_start(found)
    assert time.monotonic() - started < 2


def test_what_runc_says_is_told(engine: RuncEngine, programs: Programs, tmp_path: Path, here: Path) -> None:
    programs.add("runc", '[ "$1" != --log ] || echo "level=error msg=unable" > "$2"; exit 1')
    with pytest.raises(UpgradeError, match="msg=unable"):
        engine.cold_start(engine.find("web"))
    made = images(tmp_path)
    with pytest.raises(UpgradeError, match="msg=unable"):
        engine.restore(engine.find("web"), made, lambda: pytest.fail("was not restored"))
    (made.work / "restore.log").write_text("(00.1) Error (criu/a.c:1): why\n")
    with pytest.raises(UpgradeError, match=r"Error \(criu/a\.c:1\): why"):
        engine.restore(engine.find("web"), made, lambda: pytest.fail("was not restored"))


def test_a_bundle_without_a_cgroup_path_is_run_beside_its_cgroup(
    machine: Machine, engine: RuncEngine, programs: Programs, here: Path
) -> None:
    put(machine, "plain", 600, cgroups={"path": ""})
    programs.add("runc")
    programs.add("sh")
    assert engine.cold_start(engine.find("plain"))
    assert programs.calls("runc") == []
    (call,) = programs.calls("sh")
    assert "/sys/fs/cgroup/runc/seamless-upgrade/cgroup.procs" in call[4]
    assert call[5] == "runc"
    assert (machine.root / "sys/fs/cgroup/runc/seamless-upgrade").is_dir()


def test_leftovers_are_deleted_whatever_runc_says(engine: RuncEngine, programs: Programs) -> None:
    programs.add("runc", "exit 1")
    engine.clean_up(Container("web", "runc", "/runc/web", 1, host_pids=False, host_network=False))
    assert programs.calls("runc") == [["runc", "delete", "--force", "web"]]
