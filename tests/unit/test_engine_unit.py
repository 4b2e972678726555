# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.engines.unit`` and ``upgrade.services``: a systemctl that is told what to say, real sockets."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders.criu import FakeCriu
from builders.host import NAMESPACES, Machine
from builders.programs import Programs
from builders.session import container

from upgrade import paths
from upgrade.check.containers import options
from upgrade.criu import messages
from upgrade.engines import Container, unit
from upgrade.engines.base import Images
from upgrade.engines.cgroup import CgroupEngine
from upgrade.engines.unit import UnitEngine
from upgrade.errors import ExitStatus, Refusal, UpgradeError
from upgrade.host import Host
from upgrade.services import command, dropin, journal
from upgrade.services.line import Line

CGROUP = "/system.slice/web.service"
WEB = {
    "Id": "web.service",
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Type": "simple",
    "MainPID": "800",
    "ControlGroup": CGROUP,
    "NotifyAccess": "none",
    "WatchdogUSec": "0",
    "ExecStart": "{ path=/usr/bin/web-server ; argv[]=/usr/bin/web-server -x ; ignore_errors=no }",
    "StandardInput": "null",
    "StandardOutput": "journal",
    "StandardError": "inherit",
    "DefaultDependencies": "yes",
}
DATA: Mapping[str, Any] = {
    "type": "simple",
    "notify_access": "main",
    "identifier": "web%server",
    "output": "journal",
    "error": "inherit",
    "watchdog": False,
    "leads_session": True,
    "owned": [],
}


def web(**data: Any) -> Container:
    """Return a service as it travels."""
    return Container("web.service", "unit", CGROUP, 800, True, True, {**DATA, **data})


@pytest.fixture
def say(programs: Programs) -> Callable[..., None]:
    """Return a function that sets the properties that systemctl shows."""

    def properties(**values: str) -> None:
        text = "\n".join(f"{name}={value}" for name, value in {**WEB, **values}.items())
        (programs.directory / "properties").write_text(text + "\n")

    programs.add("systemctl", f'[ "$1" = show ] && cat {programs.directory}/properties; exit 0')
    properties()
    return properties


@pytest.fixture
def running(machine: Machine, say: Callable[..., None]) -> Machine:
    """Return a machine with the service."""
    machine.cgroup(CGROUP, [800, 801])
    machine.process(800)
    machine.process(801, parent=800, session=800)
    return machine


def refused(machine: Machine) -> Refusal:
    with pytest.raises(Refusal) as caught:
        UnitEngine(machine.host).find("web")
    assert caught.value.status == ExitStatus.REFUSED
    assert caught.value.hint
    assert caught.value.subject == "web.service"
    return caught.value


@pytest.mark.parametrize("name", ["web", "web.service"])
def test_a_service_is_found_by_its_name(running: Machine, programs: Programs, name: str) -> None:
    found = UnitEngine(running.host).find(name)
    assert (found.name, found.engine, found.cgroup, found.root_pid) == ("web.service", "unit", CGROUP, 800)
    assert found.host_pids
    assert found.host_network
    assert found.data == {
        "type": "simple",
        "notify_access": "none",
        "identifier": "web-server",
        "output": "journal",
        "error": "inherit",
        "watchdog": False,
        "leads_session": True,
        "owned": [],
    }
    assert programs.calls("systemctl")[0][-1] == "web.service"


def test_what_is_its_own_is_noted(running: Machine, say: Callable[..., None]) -> None:
    say(
        Type="forking",
        PIDFile="/run/web.pid",
        RuntimeDirectory="web web/more",
        SyslogIdentifier="www",
        StandardOutput="truncate",
        StandardError="journal+console",
        WatchdogUSec="20s",
        NotifyAccess="all",
    )
    running.process(802, parent=800)
    running.file("/proc/800/stat", "800 (web) S 1 799 799 0 -1 4194560")
    assert UnitEngine(running.host).find("web").data == {
        "type": "forking",
        "notify_access": "all",
        "identifier": "www",
        "output": "null",
        "error": "journal+console",
        "watchdog": True,
        "leads_session": False,
        "owned": ["/run/web", "/run/web/more", "/run/web.pid"],
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"LoadState": "not-found"}, "no such service"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "does not run: it is inactive (dead)"),
        ({"SubState": "exited"}, "does not run: it is active (exited)"),
        ({"MainPID": "0"}, "does not know its main process"),
        ({"Type": "dbus"}, "Type=dbus: its connection to D-Bus"),
        ({"Type": "oneshot"}, "Type=oneshot"),
        ({"PAMName": "login"}, "PAMName=login"),
        ({"DefaultDependencies": "no"}, "early boot"),
        ({"StandardInput": "tty"}, "StandardInput=tty"),
        ({"MainPID": "900"}, "main process 900 is not in"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    running: Machine, say: Callable[..., None], values: dict[str, str], message: str
) -> None:
    running.process(900)
    say(**values)
    assert message in refused(running).message


def test_a_second_tree_is_refused_by_name(running: Machine) -> None:
    running.cgroup(CGROUP, [800, 802])
    running.process(802, name="left over")
    assert "802 (left over)" in refused(running).message


@pytest.mark.parametrize("kind", NAMESPACES)
def test_a_namespace_is_refused_with_what_causes_it(
    machine: Machine, say: Callable[..., None], kind: str
) -> None:
    machine.cgroup(CGROUP, [800])
    machine.process(800, namespaces={kind: 4026532999})
    say(
        PrivateTmp="yes",
        BindPaths="[unprintable]",
        ProtectSystem="no",
        ProtectProc="default",
        RootDirectory="/",
        PrivateNetwork="yes",
        PrivateIPC="yes",
        ProtectHostname="yes",
        PrivateUsers="yes",
        PrivatePIDs="yes",
    )
    error = refused(machine)
    assert f"a {kind} namespace of its own, because of" in error.message
    assert "ProtectSystem" not in error.message
    assert "ProtectProc" not in error.message
    assert "unprintable" not in error.message
    assert "RootDirectory" not in error.message
    assert "systemctl edit web.service" in str(error.hint)
    say()
    assert refused(machine).message == f"has a {kind} namespace of its own"


def test_the_cgroup_of_a_service_is_refused_with_the_better_way(running: Machine) -> None:
    with pytest.raises(Refusal) as caught:
        CgroupEngine(running.host).find(CGROUP)
    assert "--unit web.service" in str(caught.value.hint)


def test_a_drop_in_left_on_disk_is_generated_and_removed(
    machine: Machine, here: Path, programs: Programs
) -> None:
    """The generator itself, with the root and the command line of the machine."""
    programs.add("systemctl")
    dropin.spool(machine.host, "20260101T000000Z-abc", "web.service", DATA)
    dropin.spool(machine.host, "another", "other.service", DATA)
    script = (Path(dropin.__file__).parents[1] / "units/seamless-upgrade-generator").read_text()
    script = script.replace("/var/lib/seamless-upgrade", str(paths.STATE)).replace("/proc/cmdline", "$4")
    early = machine.host.path(dropin.GENERATED)
    early.mkdir(parents=True)
    line = machine.file(
        "/proc/cmdline", "root=/dev/vda1 * seamless_upgrade.session=20260101T000000Z-abc quiet"
    )

    def generate() -> list[str]:
        words = ["sh", "-c", script, "generator", "normal", str(early), "late", str(line)]
        subprocess.run(words, check=True, env={"PATH": "/usr/bin:/bin"}, cwd=here)
        return sorted(str(p.relative_to(early)) for p in early.rglob("*") if p.is_file())

    assert generate() == [f"web.service.d/{dropin.FILE}"]
    assert not dropin.ensure(machine.host, "web.service", DATA)
    assert programs.calls() == []
    text = (early / "web.service.d" / dropin.FILE).read_text()
    assert text == dropin.text(machine.host, DATA)
    assert "SyslogIdentifier=web%%server\n" in text
    assert "NotifyAccess=main\n" in text
    assert "StandardOutput=journal\nStandardError=inherit\n" in text
    assert dropin.remove(machine.host, "web.service")
    assert not dropin.remove(machine.host, "web.service")
    assert generate() == []  # it is not generated again
    for words in ("quiet", "seamless_upgrade.session=", "seamless_upgrade.session=unknown"):
        machine.file("/proc/cmdline", words)
        assert generate() == []
    dropin.forget("another")
    assert not (paths.UNITS / "another").exists()


def test_a_drop_in_that_was_not_generated_is_written(
    machine: Machine, here: Path, programs: Programs
) -> None:
    programs.add("systemctl")
    assert dropin.ensure(machine.host, "web.service", DATA)
    assert machine.host.exists(f"{dropin.WRITTEN}/web.service.d/{dropin.FILE}")
    assert programs.calls() == [["systemctl", "daemon-reload"]]
    assert dropin.remove(machine.host, "web.service")


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, int]]:
    """Return a socket whose other end somebody like journald has, and its inode."""
    monkeypatch.setattr(journal, "STREAM", str(tmp_path / "stdout"))
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as ours,
    ):
        listener.bind(str(tmp_path / "stdout"))
        listener.listen()
        ours.connect(str(tmp_path / "stdout"))
        with listener.accept()[0]:
            yield ours, os.fstat(ours.fileno()).st_ino


def test_streams_to_the_journal_are_found_and_others_are_not(
    stream: tuple[socket.socket, int], tmp_path: Path
) -> None:
    ours, inode = stream
    one, other = socket.socketpair()
    with one, other:
        code = "import sys; print('ready', file=sys.stderr, flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=ours.fileno(),
            stderr=subprocess.PIPE,
            pass_fds=[one.fileno()],
        ) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == b"ready\n"
            assert journal.streams(Host(), [process.pid]) == {inode: 1}
            process.communicate()
    assert journal.streams(Host(), []) == {}


def test_the_dump_leaves_the_journal_out(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, tmp_path: Path
) -> None:
    monkeypatch.setattr(journal, "streams", lambda _host, _pids: {77: 1, 78: 2})
    machine.file("/proc/self/mountinfo", "22 1 0:20 / / rw - tmpfs tmpfs rw")
    wanted = options.of(machine.host, web(leads_session=False))
    assert wanted.external == ["unix[77]", "unix[78]"]
    assert wanted.shell_job
    assert wanted.ext_unix_sk
    directory = os.open(tmp_path, os.O_RDONLY)
    rpc = messages().criu_opts(images_dir_fd=directory, work_dir_fd=directory)
    UnitEngine(machine.host).dump_options(web(), rpc)
    os.close(directory)
    assert list(rpc.external) == ["unix[77]", "unix[78]"]
    assert not rpc.shell_job
    assert json.loads((tmp_path / unit.STREAMS).read_text()) == {"77": 1, "78": 2}


class Starter:
    """A systemd: ``systemctl start`` waits until the command has been run, here in a thread."""

    def __init__(self, directory: Path, programs: Programs) -> None:
        self.directory = directory
        body = f'case "$1" in start) touch {directory}/begun; while [ ! -e {directory}/status ]; do sleep 0.01; done; '
        programs.add("systemctl", body + f"exit $(cat {directory}/status);; esac")
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not (self.directory / "begun").exists():
            pass
        status = command.main("web.service")
        (self.directory / "status.new").write_text(str(int(status)))
        (self.directory / "status.new").rename(self.directory / "status")


@pytest.fixture
def images(tmp_path: Path) -> Images:
    for name in ("images", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / unit.STREAMS).write_text('{"77": 1}')
    return Images(tmp_path / "images", tmp_path / "work", 20.0)


@pytest.fixture
def journalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard output be what systemd opens."""
    monkeypatch.setattr(command, "_is_socket", lambda number: number == 1)


@pytest.mark.usefixtures("journalled")
def test_systemd_restores_it(
    machine: Machine, here: Path, programs: Programs, criu: FakeCriu, images: Images
) -> None:
    criu.on("RESTORE", ["notify", "post-restore", 9], ["answer", {"pid": 800}])
    unlocked: list[dict[str, bool]] = []
    programs.add("systemctl")
    dropin.ensure(machine.host, "web.service", DATA)
    starter = Starter(here, programs)
    engine = UnitEngine(machine.host)
    assert engine.restore(web(leads_session=False), images, lambda: unlocked.append(criu.answers())) == 800
    starter.thread.join()
    assert unlocked == [{}]  # CRIU still waits for the answer to post-restore
    assert (paths.RUNTIME / "web.service.pid").read_text() == "800\n"
    wanted = criu.options("RESTORE")
    assert [each.key for each in wanted.inherit_fd] == ["socket:[77]"]
    assert wanted.inherit_fd[0].fd > 2
    assert wanted.shell_job
    assert programs.calls("systemctl")[-1] == [
        *("systemctl", "start", "--job-mode=ignore-dependencies", "--", "web.service")
    ]


@pytest.mark.usefixtures("journalled")
def test_a_restore_that_fails_says_why(
    machine: Machine, here: Path, programs: Programs, criu: FakeCriu, images: Images
) -> None:
    criu.on("RESTORE", ["answer", {"success": False, "message": "no room"}])
    Starter(here, programs)
    with pytest.raises(UpgradeError, match="no room"):
        UnitEngine(machine.host).restore(web(), images, lambda: None)


def test_a_start_that_never_comes_to_the_restore_says_so(
    machine: Machine, here: Path, programs: Programs, images: Images
) -> None:
    programs.add("systemctl", '[ "$1" = start ] && { echo "no such unit" >&2; exit 5; }; exit 0')
    with pytest.raises(
        UpgradeError, match="did not start its restore: systemctl: exit status 5: no such unit"
    ):
        UnitEngine(machine.host).restore(web(), images, lambda: None)


def test_without_a_restore_the_service_is_started(
    here: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.add("systemctl")
    assert command.main("never-heard-of.service") == ExitStatus.FAILED
    assert programs.calls("systemctl") == [
        ["systemctl", "daemon-reload"],
        ["systemctl", "restart", "--no-block", "--", "never-heard-of.service"],
    ]
    assert "it is started" in capsys.readouterr().err


def test_a_line_that_ends_is_an_error(here: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with Line(ours) as line:
        with pytest.raises(UpgradeError, match="gone"):
            line.receive(5)
        with pytest.raises(UpgradeError, match="gone"):
            line.send(event="unlock")


def test_what_failed_is_cleared_away_and_started(machine: Machine, here: Path, programs: Programs) -> None:
    programs.add("systemctl")
    machine.cgroup(CGROUP, [800])
    engine = UnitEngine(machine.host)
    dropin.ensure(machine.host, "web.service", DATA)
    engine.clean_up(web())
    assert machine.written(f"/sys/fs/cgroup{CGROUP}/cgroup.kill") == ["1"]
    assert not machine.host.exists(f"{dropin.WRITTEN}/web.service.d/{dropin.FILE}")
    assert engine.cold_start(web())
    assert [" ".join(words[1:]) for words in programs.calls("systemctl")][1:] == [
        "stop --job-mode=ignore-dependencies -- web.service",
        "reset-failed -- web.service",
        "daemon-reload",
        "start --no-block -- web.service",
    ]


@pytest.mark.parametrize(
    ("state", "restart", "started"),
    [
        ("active", "always", False),
        ("failed", "always", True),
        ("failed", "on-failure", True),
        ("failed", "no", False),
        ("inactive", "on-failure", False),
        ("inactive", "always", True),
    ],
)
def test_afterwards_its_start_is_its_own_again(
    machine: Machine,
    here: Path,
    programs: Programs,
    say: Callable[..., None],
    state: str,
    restart: str,
    started: bool,
) -> None:
    say(ActiveState=state, Restart=restart)
    dropin.ensure(machine.host, "web.service", DATA)
    calls = len(programs.calls())
    assert unit.settle(machine.host, ["web.service", "untouched.service"]) == []
    done = [words[1] for words in programs.calls()[calls:]]
    assert done == ["daemon-reload", "show", *(["start"] if started else [])]
    assert unit.settle(machine.host, ["web.service"]) == []
    assert len(programs.calls()) == calls + len(done)


@pytest.mark.parametrize(("state", "runs"), [("active", True), ("failed", False)])
def test_systemd_says_whether_it_runs(
    machine: Machine, say: Callable[..., None], state: str, runs: bool
) -> None:
    say(ActiveState=state)
    assert UnitEngine(machine.host).runs(web()) is runs


def test_none_is_preserved_unasked(machine: Machine) -> None:
    assert UnitEngine(machine.host).available() == []
    assert UnitEngine(machine.host).helpers(container()) == ()
