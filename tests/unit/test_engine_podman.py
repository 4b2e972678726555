# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.engines.podman``: a podman that answers as podman 5.4 does, and is recorded."""

import json
import sqlite3
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.oci import put_crun
from builders.programs import Programs

from upgrade.criu import messages
from upgrade.engines import health, podman_state
from upgrade.engines.base import Images
from upgrade.engines.podman import PodmanEngine
from upgrade.errors import Refusal, UpgradeError

ID = "3f" * 32
OTHER = "5a" * 32
STORAGE = "/var/lib/containers/storage/overlay-containers"
LINKS = [{"ifname": "lo", "address": "00:00:00:00:00:00"}, {"ifname": "eth7", "address": "aa:bb:cc:dd:ee:ff"}]


def inspected(identity: str, name: str, **other: Any) -> dict[str, Any]:
    """Return what ``podman container inspect`` says of a container, shortened."""
    found: dict[str, Any] = {
        "Id": identity,
        "Name": name,
        "Pod": "",
        "IsInfra": False,
        "Dependencies": [],
        "StaticDir": f"{STORAGE}/{identity}/userdata",
        "Config": {
            "Labels": None,
            "Tty": False,
            "CreateCommand": None,
            "sdNotifyMode": "conmon",
        },
        "State": {"ConmonPid": 490},
        "ConmonPidFile": f"/run/containers/{identity}/conmon.pid",
        "OCIRuntime": "crun",
        "HostConfig": {
            "NetworkMode": "bridge",
            "AutoRemove": False,
            "ContainerIDFile": "",
            "LogConfig": None,
            "IpcMode": "shareable",
        },
        "NetworkSettings": {
            "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": None},
            "Networks": {
                "podman": {
                    "IPAddress": "10.88.0.2",
                    "IPPrefixLen": 16,
                    "Gateway": "10.88.0.1",
                    "GlobalIPv6Address": "fd00::2",
                    "GlobalIPv6PrefixLen": 64,
                    "IPv6Gateway": "",
                    "MacAddress": "aa:bb:cc:dd:ee:ff",
                }
            },
        },
    }
    for key, value in other.items():
        place = next((p for p in (found["Config"], found["HostConfig"]) if key in p), found)
        place[key] = value
    return found


class Podman:
    """Knows containers, and says what it knows."""

    def __init__(self, machine: Machine, programs: Programs) -> None:
        self.machine = machine
        self.programs = programs
        self.known: dict[str, dict[str, Any]] = {}
        programs.real("sh")
        programs.add("nsenter", f"echo '{json.dumps(LINKS)}'")
        self.answer()

    def run(self, identity: str, name: str, pid: int, **other: Any) -> None:
        """Let a container run."""
        put_crun(self.machine, identity, pid, annotations={"io.container.manager": "libpod"})
        self.known[identity] = inspected(identity, name, **other)
        (self.machine.root / STORAGE.lstrip("/") / identity / "userdata").mkdir(parents=True, exist_ok=True)
        self.answer()

    def answer(self, rest: str = ":") -> None:
        """Have ``inspect`` answer about the containers it is asked for, and anything else do ``rest``."""
        cases = "".join(f"{i}) echo '{json.dumps(entry)}';;\n" for i, entry in self.known.items())
        self.programs.add(
            "podman",
            'if [ "$2" = inspect ]; then shift 2; echo [; sep=; for id; do echo $sep; sep=,; '
            f'case "$id" in\n{cases}*) exit 125;; esac; done; echo ]; else {rest}\nfi',
        )


@pytest.fixture
def podman(machine: Machine, programs: Programs) -> Podman:
    found = Podman(machine, programs)
    found.run(ID, "web", 500)
    return found


@pytest.fixture
def engine(machine: Machine, podman: Podman) -> PodmanEngine:
    return PodmanEngine(machine.host)


def test_a_container_is_found_by_its_name_and_its_id(engine: PodmanEngine) -> None:
    for name in ("web", ID, ID[:12]):
        assert engine.knows(name)
        found = engine.find(name)
        assert (found.name, found.engine, found.cgroup, found.root_pid) == (
            "web",
            "podman",
            f"/crun/{ID}",
            500,
        )
    assert (found.addresses, found.published) == (("10.88.0.2", "fd00::2"), (8080,))
    assert engine.is_late(found)
    assert not engine.lazy
    assert not engine.knows("other")
    json.dumps(dict(found.data))


def test_where_podman_runs_nothing_it_is_not_asked(machine: Machine, programs: Programs) -> None:
    put_crun(machine, "own", 600)
    engine = PodmanEngine(machine.host)
    assert engine.available() == []
    assert not engine.knows("own")
    assert programs.calls() == []


def test_podman_is_asked_once_about_all(podman: Podman, engine: PodmanEngine) -> None:
    podman.run(OTHER, "db", 600)
    assert [engine.find(c.name).name for c in engine.available()] == ["web", "db"]
    assert len(podman.programs.calls("podman")) == 1


def test_all_running_ones_are_available(machine: Machine, podman: Podman, engine: PodmanEngine) -> None:
    podman.run(OTHER, "db", 600, NetworkMode="host")
    put_crun(machine, "own", 700)
    assert sorted(c.name for c in engine.available()) == ["db", "web"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"Pod": "5f"}, "pod"),
        ({"Dependencies": [OTHER]}, "shares namespaces"),
        ({"AutoRemove": True}, "--rm"),  # podman's database knows nothing of it
        ({"Tty": True, "OCIRuntime": "/usr/bin/runc"}, "terminal"),
        ({"NetworkMode": "slirp4netns:mtu=1500"}, "slirp4netns"),
        ({"NetworkMode": "ns:/run/netns/x"}, "ns"),
        ({"LogConfig": {"Type": "passthrough-tty"}}, "passthrough"),
    ],
)
def test_what_cannot_come_back_is_refused(
    podman: Podman, engine: PodmanEngine, other: dict[str, Any], message: str
) -> None:
    podman.run(ID, "web", 500, **other)
    assert [c.name for c in engine.available()] == ["web"]
    with pytest.raises(Refusal, match=message) as caught:
        engine.find("web")
    assert caught.value.subject == "web"
    assert caught.value.hint


def test_unknown_paused_and_entered_ones_are_refused(machine: Machine, engine: PodmanEngine) -> None:
    with pytest.raises(Refusal) as caught:
        engine.find("none")
    assert "web" in str(caught.value.hint)
    machine.file(f"/sys/fs/cgroup/crun/{ID}/cgroup.freeze", "1")
    with pytest.raises(Refusal, match="paused") as caught:
        engine.find("web")
    assert caught.value.hint == "podman unpause web"
    machine.file(f"/sys/fs/cgroup/crun/{ID}/cgroup.freeze", "0")
    machine.file(f"/sys/fs/cgroup/crun/{ID}/cgroup.procs", "500\n501\n799")
    machine.process(799, parent=5)
    with pytest.raises(Refusal, match="podman exec"):
        engine.find("web")


def test_it_is_dumped_as_its_runtime_would(engine: PodmanEngine) -> None:
    options = messages().criu_opts()
    engine.dump_options(engine.find("web"), options)
    assert {entry.key for entry in options.ext_mnt} == {"/data", "/etc/hosts"}
    assert options.root == f"/srv/{ID}/rootfs"
    assert options.file_locks
    assert not options.ext_unix_sk, "podman's restore cannot be told of them"


def test_what_podman_would_have_written_is_written(
    machine: Machine, engine: PodmanEngine, tmp_path: Path
) -> None:
    shm = machine.root / STORAGE.lstrip("/") / ID / "userdata/shm"
    (shm / "deep").mkdir(parents=True)
    (shm / "deep/file").write_text("kept")
    machine.file("/proc/self/mounts", f"shm {STORAGE}/{ID}/userdata/shm tmpfs rw 0 0")
    found = engine.find("web")
    images = Images(tmp_path, tmp_path)
    engine.prepare_images(found, images)
    (shm / "late").write_text("written after the first look")
    engine.capture(found, images)
    assert json.loads((tmp_path / "descriptors.json").read_text()) == ["/dev/null", "pipe:[1]", "pipe:[2]"]
    assert json.loads((tmp_path / "network.status").read_text()) == {
        "podman": {
            "interfaces": {
                "eth7": {
                    "subnets": [
                        {"ipnet": "10.88.0.2/16", "gateway": "10.88.0.1"},
                        {"ipnet": "fd00::2/64"},
                    ],
                    "mac_address": "aa:bb:cc:dd:ee:ff",
                }
            }
        }
    }
    with tarfile.open(tmp_path / "devshm-checkpoint.tar") as archive:
        assert set(archive.getnames()) == {".", "./deep", "./deep/file", "./late"}


def test_a_container_on_the_host_s_network_has_no_addresses(
    machine: Machine, podman: Podman, engine: PodmanEngine, tmp_path: Path
) -> None:
    podman.run(ID, "web", 500, NetworkMode="host", NetworkSettings={"Networks": {}, "Ports": {}})
    put_crun(machine, ID, 500, annotations={"io.container.manager": "libpod"}, namespaces=[{"type": "pid"}])
    found = engine.find("web")
    assert found.host_network
    assert (found.addresses, found.published) == ((), ())
    engine.prepare_images(found, Images(tmp_path, tmp_path))
    engine.capture(found, Images(tmp_path, tmp_path))
    assert (tmp_path / "network.status").read_text() == "{}"
    assert not (tmp_path / "devshm-checkpoint.tar").exists()


def made(tmp_path: Path) -> Images:
    for name in ("images", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "images/network.status").write_text("{}")
    return Images(tmp_path / "images", tmp_path / "work")


def test_podman_restores_from_where_it_looks(
    machine: Machine, podman: Podman, engine: PodmanEngine, tmp_path: Path, listening: None
) -> None:
    found = engine.find("web")
    images = made(tmp_path)
    directory = machine.root / STORAGE.lstrip("/") / ID / "userdata"
    (directory / "checkpoint").mkdir()  # an older one of its owner
    put_crun(machine, ID, 4711, annotations={"io.container.manager": "libpod"})
    podman.answer(f"cat {directory}/network.status && ls {directory}/checkpoint/")
    unlocked: list[int] = []
    pid = engine.restore(found, images, lambda: unlocked.append(len(podman.programs.calls("podman"))))
    assert (pid, len(unlocked)) == (4711, 1)
    call = podman.programs.calls("podman")[-1]
    assert call == ["podman", "container", "restore", "--tcp-established", "--file-locks", ID]
    assert (images.work / "podman.log").read_text() == "{}network.status\n"
    assert (images.work / "restored").exists()
    assert [p.name for p in directory.iterdir()] == ["checkpoint"]
    assert (directory / "checkpoint").is_dir()
    assert not (directory / "checkpoint").is_symlink()


def test_what_podman_says_is_told_and_its_links_are_removed(
    machine: Machine, podman: Podman, engine: PodmanEngine, tmp_path: Path, listening: None
) -> None:
    found = engine.find("web")
    directory = machine.root / STORAGE.lstrip("/") / ID / "userdata"
    (directory / "restore.log").write_text("(00.1) Error (criu/a.c:1): why\n")
    podman.answer("echo Error: unable >&2; exit 125")
    with pytest.raises(UpgradeError, match=r"unable.*Error \(criu/a\.c:1\): why"):
        engine.restore(found, made(tmp_path), lambda: pytest.fail("was not restored"))
    assert (directory / "checkpoint").is_symlink()
    engine.clean_up(found)
    assert sorted(p.name for p in directory.iterdir()) == ["restore.log"]
    assert podman.programs.calls("podman")[-1] == ["podman", "kill", ID]
    assert machine.written(f"/sys/fs/cgroup/crun/{ID}/cgroup.kill") == ["1"]


STATES = {"state": 3, "pid": 500, "netns": "/run/netns/x"}


def put_database(machine: Machine, *ids: str) -> Path:
    """Write the database that says of containers that they run, as podman 5.4 does."""
    file = machine.file("/var/lib/containers/storage/db.sql", "")
    with closing(sqlite3.connect(file)) as opened, opened:
        opened.execute("CREATE TABLE ContainerState(ID TEXT PRIMARY KEY, State INTEGER, JSON TEXT NOT NULL)")
        rows = [(identity, json.dumps(STATES).encode()) for identity in ids]
        opened.executemany("INSERT INTO ContainerState VALUES (?, 1, ?)", rows)
    return file


def states(file: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(file)) as opened:
        return {row[0]: json.loads(row[1]) for row in opened.execute("SELECT ID, JSON FROM ContainerState")}


def test_podman_keeps_what_it_would_remove(machine: Machine, podman: Podman, engine: PodmanEngine) -> None:
    podman.run(ID, "web", 500, AutoRemove=True)
    podman.run(OTHER, "kept", 600)
    file = put_database(machine, ID, OTHER)
    found = [engine.find("web"), engine.find("kept")]
    machine.file(podman_state.ALIVE, "")
    engine.expect(found)
    assert states(file) == {ID: STATES, OTHER: STATES}, "podman has seen this boot already"
    machine.host.path(podman_state.ALIVE).unlink()
    engine.expect(found)
    assert states(file) == {ID: {**STATES, "state": 1}, OTHER: STATES}
    engine.expect(found)
    assert states(file)[ID]["state"] == 1


@pytest.mark.parametrize("text", ["", "no database", '{"state": 6}'])
def test_a_database_that_says_something_else_is_no_reason_to_remove(
    machine: Machine, podman: Podman, engine: PodmanEngine, text: str
) -> None:
    podman.run(ID, "web", 500, AutoRemove=True)
    if text.startswith("{"):
        file = put_database(machine, ID)
        with closing(sqlite3.connect(file)) as opened, opened:
            opened.execute("UPDATE ContainerState SET JSON = ?", (text,))
    elif text:
        machine.file("/var/lib/containers/storage/db.sql", text)
    with pytest.raises(Refusal, match=r"--rm.*db\.sql") as caught:
        engine.find("web")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            ["podman", "run", "--rm", "-p", "80:80", "tiny", "run"],
            ["run", "--rm", "-p", "80:80", "tiny", "run"],
        ),
        (
            ["podman", "--log-level=info", "container", "create", "x"],
            ["--log-level=info", "container", "run", "x"],
        ),
    ],
)
def test_one_that_podman_has_removed_is_made_anew(
    machine: Machine,
    podman: Podman,
    engine: PodmanEngine,
    here: Path,
    listening: None,
    command: list[str],
    expected: list[str],
) -> None:
    podman.run(ID, "web", 500, AutoRemove=True, CreateCommand=command)
    put_database(machine, ID)
    assert engine.cold_start(engine.find("web"))
    removed, made = podman.programs.calls("podman")[-2:]
    assert removed == ["podman", "rm", "--force", "--ignore", "--time", "0", ID]
    place = expected.index("run") + 1
    assert made == ["podman", *expected[:place], "--detach", *expected[place:]]


def test_one_that_was_made_through_the_api_cannot_be_made_anew(
    machine: Machine, podman: Podman, engine: PodmanEngine, here: Path
) -> None:
    podman.run(ID, "web", 500, AutoRemove=True)
    put_database(machine, ID)
    assert not engine.cold_start(engine.find("web"))


def test_its_id_is_written_where_it_was(
    machine: Machine, podman: Podman, engine: PodmanEngine, tmp_path: Path, listening: None
) -> None:
    podman.run(ID, "web", 500, ContainerIDFile="/run/web.cid")
    found = engine.find("web")
    engine.restore(found, made(tmp_path), lambda: None)
    assert machine.host.read("/run/web.cid") == ID
    engine.clean_up(found)
    assert not machine.host.exists("/run/web.cid")
    podman.run(ID, "web", 500, ContainerIDFile="/root/web.cid")
    assert PodmanEngine(machine.host).find("web").data["id_files"] == []


def test_a_terminal_comes_back(podman: Podman, engine: PodmanEngine) -> None:
    podman.run(ID, "web", 500, Tty=True)
    options = messages().criu_opts()
    engine.dump_options(engine.find("web"), options)
    assert options.orphan_pts_master


def test_a_user_namespace_is_refused(machine: Machine, podman: Podman, engine: PodmanEngine) -> None:
    put_crun(
        machine,
        ID,
        500,
        annotations={"io.container.manager": "libpod"},
        namespaces=[{"type": "pid"}, {"type": "user"}],
    )
    with pytest.raises(Refusal, match="user namespace"):
        engine.find("web")


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_files_in_the_host_s_memory_are_refused(
    machine: Machine, podman: Podman, engine: PodmanEngine, how: str
) -> None:
    podman.run(ID, "web", 500, IpcMode="host")
    assert engine.find("web")
    if how == "open":
        (machine.root / "proc/501/fd").mkdir()
        (machine.root / "proc/501/fd/3").symlink_to("/dev/shm/queue")
    else:
        machine.file("/proc/501/maps", "7f00-7f01 rw-s 00000000 00:1a 7     /dev/shm/queue")
    with pytest.raises(Refusal, match="/dev/shm/queue"):
        PodmanEngine(machine.host).find("web")
    podman.run(ID, "web", 500)
    assert PodmanEngine(machine.host).find("web")


def test_mount_points_in_what_ends_with_the_kernel_are_made_again(
    machine: Machine, podman: Podman, engine: PodmanEngine, tmp_path: Path, listening: None
) -> None:
    run, static = f"/run/containers/{ID}/userdata", f"{STORAGE}/{ID}/userdata"
    machine.file(f"{static}/secrets/one", "secret")
    (machine.root / f"{static}/some".lstrip("/")).mkdir()
    binds = {
        "/run/secrets": f"{run}/run/secrets",
        "/run/secrets/one": f"{static}/secrets/one",
        "/run/secrets/deep/some": f"{static}/some",
        "/data": "/srv/data",
        "/data/inside": "/srv/inside",
    }
    spec = {"mounts": [{"type": "bind", "destination": d, "source": s} for d, s in binds.items()]}
    machine.file(f"{static}/config.json", json.dumps(spec))
    podman.run(ID, "web", 500, OCIConfigPath=f"{static}/config.json")
    engine.restore(engine.find("web"), made(tmp_path), lambda: None)
    secrets = machine.root / f"{run}/run/secrets".lstrip("/")
    assert (secrets / "one").is_file()
    assert (secrets / "deep/some").is_dir()
    assert not (machine.root / "srv").exists()


def test_its_health_checks_go_on(
    machine: Machine, podman: Podman, engine: PodmanEngine, tmp_path: Path, listening: None
) -> None:
    checks = {"Test": ["CMD", "true"], "Interval": 7_000_000_000}
    podman.run(ID, "web", 500, Config={"Tty": False, "Healthcheck": checks})
    ran = tmp_path / "ran"
    podman.programs.add("systemd-run")
    podman.programs.add("systemctl", f": >{ran}")
    engine.restore(engine.find("web"), made(tmp_path), lambda: None)
    while not ran.exists():  # it is not waited for
        time.sleep(0.01)
    (call,) = podman.programs.calls("systemd-run")
    assert {f"--unit={ID}", "--on-unit-inactive=7000000us"} <= set(call)
    assert call[-4:] == ["podman", "healthcheck", "run", ID]
    assert podman.programs.calls("systemctl") == [["systemctl", "restart", "--no-block", f"{ID}.service"]]


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ({}, []),
        ({"Healthcheck": {"Test": ["NONE"]}}, []),
        ({"Healthcheck": {"Interval": 5}, "StartupHealthCheck": None}, [ID, 5]),
        ({"Healthcheck": {"Interval": 5}, "StartupHealthCheck": {"Interval": 3}}, [f"{ID}-startup", 3]),
    ],
)
def test_checks_begin_with_those_of_the_start(checks: dict[str, Any], expected: list[Any]) -> None:
    assert health.of({"Id": ID, "Config": checks}) == expected


def test_timers_that_were_stopped_are_started_again(podman: Podman, tmp_path: Path) -> None:
    podman.run(ID, "web", 500, Config={"Tty": False, "Healthcheck": {"Interval": 9_000_000_000}})
    ran = tmp_path / "ran"
    podman.programs.add("systemd-run")
    podman.programs.add("systemctl", f": >{ran}")
    health.revive(["cron.timer", f"{ID}-5f3a.timer", f"{OTHER}.timer", f"{ID}.service"])
    while not ran.exists():
        time.sleep(0.01)
    (call,) = podman.programs.calls("systemd-run")
    assert {f"--unit={ID}-5f3a", "--on-unit-inactive=9000000us"} <= set(call)


def test_it_is_started_afresh_by_podman(
    podman: Podman, engine: PodmanEngine, here: Path, listening: None
) -> None:
    found = engine.find("web")
    assert engine.cold_start(found)
    assert podman.programs.calls("podman")[-1] == ["podman", "start", ID]
    assert engine.runs(found)
