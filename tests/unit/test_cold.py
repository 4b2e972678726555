# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.cold``: containers that are stopped before the jump and started after it."""

import json
import time
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from builders.host import Machine
from builders.programs import Programs

from upgrade import cold, paths, plan
from upgrade.check.host import engines as forgotten
from upgrade.check.model import Status
from upgrade.check.situation import Situation
from upgrade.cli.parser import parse
from upgrade.cold import record
from upgrade.config import Config
from upgrade.errors import ExitStatus, Refusal, UpgradeError
from upgrade.report import store
from upgrade.report.model import ContainerOutcome, Outcome, Report
from upgrade.report.text import render
from upgrade.request import Request
from upgrade.undo import Undo

DB, WEB, TASK = "d0" * 32, "eb" * 32, "7a" * 32
BEGIN = datetime(2026, 11, 23, 1, 0, tzinfo=UTC)


def inspected(identity: str, name: str, after_s: int, **other: Any) -> dict[str, Any]:
    """Return what ``docker container inspect`` says of a container, shortened."""
    started = (BEGIN + timedelta(seconds=after_s)).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
    return {
        "Id": identity,
        "Name": f"/{name}",
        "State": {"Running": other.get("running", True), "ExitCode": 3, "StartedAt": started},
        "Config": {"Labels": other.get("labels")},
        "HostConfig": {"AutoRemove": other.get("removed", False)},
    }


class Docker:
    """Knows containers, and writes down what it is told to do."""

    def __init__(self, machine: Machine, programs: Programs) -> None:
        self.programs = programs
        self.known: dict[str, dict[str, Any]] = {}
        machine.file("/run/docker.pid", "700")

    def know(self, *containers: dict[str, Any], rest: str = ":") -> None:
        """Let containers run; whatever else docker is told is done by ``rest``."""
        self.known |= {each["Id"]: each for each in containers}
        cases = "".join(f"{i}) echo '{json.dumps(entry)}';;\n" for i, entry in self.known.items())
        inspect = (
            'shift 2; echo [; sep=; for id; do echo $sep; sep=,; case "$id" in\n'
            + cases
            + "esac; done; echo ]"
        )
        ids = "; ".join(f"echo {i}" for i in self.known) or ":"
        self.programs.add("docker", f'case "$1" in ps) {ids};; container) {inspect};; *) {rest};; esac')

    def told(self) -> list[list[str]]:
        """Return what it was told to do."""
        return [words[1:] for words in self.programs.calls("docker") if words[1] in ("stop", "start")]


@pytest.fixture
def docker(machine: Machine, programs: Programs) -> Docker:
    found = Docker(machine, programs)
    found.know(inspected(WEB, "web", 60), inspected(DB, "db", 0))
    return found


def test_without_dockerd_nothing_is_asked(machine: Machine, programs: Programs) -> None:
    assert cold.engine(machine.host, "docker").running() == []
    assert programs.calls() == []


def test_they_are_found_in_the_order_of_their_start(machine: Machine, docker: Docker) -> None:
    docker.know(inspected(TASK, "task.1", 5, labels={"com.docker.swarm.task.id": "x"}))
    found = cold.engine(machine.host, "docker").running()
    assert [each.name for each in found] == ["db", "web"]  # a swarm starts its own tasks
    assert found[1].started_ns - found[0].started_ns == 60 * 10**9
    assert found[0].started_ns == round(BEGIN.timestamp()) * 10**9 + 123_456_000


def test_what_was_stopped_is_started_and_its_time_counted(
    machine: Machine, docker: Docker, here: Path
) -> None:
    before = time.time_ns()
    made = record.stop(machine.host, ["docker"], "s1", paths.COLD)
    assert before <= made.asked_ns <= time.time_ns()
    assert record.Record.load(paths.COLD) == made
    assert paths.COLD.stat().st_mode & 0o777 == 0o600
    told = [["stop", DB, WEB]]
    assert docker.told() == told
    docker.know(inspected(DB, "db", 100), inspected(WEB, "web", 107))
    asked = record.Record("s1", round(BEGIN.timestamp()) * 10**9, made.containers)
    first, second = record.start(machine.host, asked)
    assert docker.told() == [*told, ["start", DB], ["start", WEB]]
    assert (first.name, first.engine, first.outcome) == ("db", "docker", ContainerOutcome.RESTARTED)
    assert (first.downtime_seconds, second.downtime_seconds) == pytest.approx((100.123456, 107.123456))


def test_they_are_written_down_before_the_first_is_stopped(
    machine: Machine, docker: Docker, here: Path
) -> None:
    docker.know(rest=f"test -s {paths.COLD} && echo no >&2; exit 1")
    with pytest.raises(UpgradeError, match="no"):
        record.stop(machine.host, ["docker"], "s1", paths.COLD)


def test_one_that_does_not_start_keeps_no_other_from_it(machine: Machine, docker: Docker, here: Path) -> None:
    made = record.stop(machine.host, ["docker"], "s1", paths.COLD)
    docker.know(
        inspected(WEB, "web", 60, running=False),
        rest=f'test "$2" = {WEB} || {{ echo port is taken >&2; exit 1; }}',
    )
    first, second = record.start(machine.host, made)
    assert (first.outcome, second.outcome) == (ContainerOutcome.LOST, ContainerOutcome.LOST)
    assert first.reason is not None
    assert "port is taken" in first.reason
    assert second.reason is not None
    assert "ended at once with status 3" in second.reason


def test_a_docker_that_no_boot_starts_is_started(
    machine: Machine, docker: Docker, here: Path, programs: Programs
) -> None:
    programs.add("systemctl", f"touch {machine.root}/run/docker.pid")
    made = record.stop(machine.host, ["docker"], "s1", paths.COLD)
    assert programs.calls("systemctl") == []
    (machine.root / "run/docker.pid").unlink()
    assert [each.outcome for each in record.start(machine.host, made)] == [ContainerOutcome.RESTARTED] * 2
    assert programs.calls("systemctl") == [["systemctl", "start", "docker.service"]]


def test_an_aborted_run_starts_them_again(machine: Machine, docker: Docker, here: Path) -> None:
    undo = Undo(machine.host, paths.UNDO)
    undo.push("start_cold", file=str(paths.COLD))
    assert undo.unwind() == []  # killed before anything was stopped
    undo.push("start_cold", file=str(paths.COLD))
    record.stop(machine.host, ["docker"], "s1", paths.COLD)
    assert undo.unwind() == []
    assert docker.told()[1:] == [["start", DB], ["start", WEB]]
    assert not paths.COLD.exists()
    undo.push("start_cold", file=str(paths.COLD))
    record.stop(machine.host, ["docker"], "s1", paths.COLD)
    docker.know(rest="echo port is taken >&2; exit 1")
    (problem,) = undo.unwind()
    assert "db: it does not start" in problem


def test_one_that_would_be_removed_is_refused(machine: Machine, docker: Docker) -> None:
    record.refuse(machine.host, "docker")
    docker.know(inspected(TASK, "once", 1, removed=True))
    with pytest.raises(Refusal) as refused:
        record.refuse(machine.host, "docker")
    assert (refused.value.subject, refused.value.hint) == (
        "once",
        "stop it yourself, or start it without --rm",
    )


@pytest.mark.parametrize("name", ["db", DB, DB[:12]])
def test_one_by_name_is_refused_with_the_reason(machine: Machine, docker: Docker, name: str) -> None:
    with pytest.raises(Refusal, match="checkpoint") as refused:
        plan.engine_of(machine.host, name)
    assert refused.value.subject == name
    assert refused.value.hint is not None
    assert "--cold docker" in refused.value.hint


def test_all_are_refused_unless_it_is_said_what_becomes_of_them(machine: Machine, docker: Docker) -> None:
    with pytest.raises(Refusal) as refused:
        plan.find_containers(machine.host, Request(all=True))
    assert refused.value.subject == "docker: db, web"
    assert refused.value.hint is not None
    assert "--cold docker" in refused.value.hint
    plan.refuse_cold(machine.host, Request(all=True, cold=("docker",)))


def test_they_are_forgotten_unless_they_are_started_again(machine: Machine, docker: Docker) -> None:
    machine.cgroup(f"/system.slice/docker-{DB}.scope", [800])
    for engines, status in (((), Status.WARN), (("docker",), Status.PASS)):
        situation = Situation(machine.host, Request(cgroups=("/none",), cold=engines), Config())
        (found,) = forgotten.forgotten(situation)
        assert (found.subject, found.status) == ("docker", status)


def test_the_command_line_names_engines_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["run", "--cold", "docker"]).cold == ["docker"]
    with pytest.raises(SystemExit) as ended:
        parse(["run", "--cold", "rkt"])
    assert ended.value.code == ExitStatus.USAGE


def report() -> Report:
    """Return a report of the upgrade that has stopped containers."""
    return Report(
        id="s1",
        outcome=Outcome.UPGRADED,
        host="host",
        kernel_from="a",
        kernel_to="b",
        command_line_from="",
        command_line_to="",
        taint_before=0,
        taint_after=0,
        criu_version="4.1.1",
        started_at=BEGIN.isoformat(),
        finished_at=BEGIN.isoformat(),
        downtime_seconds=1.0,
        downtime_error_seconds=0.1,
    )


def test_the_unit_starts_them_and_adds_them_to_the_report(
    machine: Machine, docker: Docker, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upgrade.cli import cold as verb

    monkeypatch.setattr(verb, "Host", lambda: machine.host)
    options = parse(["cold"])
    assert verb.main(options) == ExitStatus.DONE
    assert docker.told() == []
    store.save(paths.REPORTS, report())
    record.stop(machine.host, ["docker"], "s1", paths.COLD)
    assert verb.main(options) == ExitStatus.DONE
    found = store.load(paths.REPORTS, "s1")
    assert [(c.name, c.outcome) for c in found.containers] == [("db", "restarted"), ("web", "restarted")]
    assert found.outcome is Outcome.UPGRADED
    schema = json.loads((files("upgrade.report") / "schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(found.to_json())
    assert not paths.COLD.exists()
    assert "2 containers stopped before and started after it" in render(found)


def test_one_that_does_not_come_back_degrades_the_upgrade(
    machine: Machine, docker: Docker, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upgrade.cli import cold as verb

    monkeypatch.setattr(verb, "Host", lambda: machine.host)
    store.save(paths.REPORTS, report())
    record.stop(machine.host, ["docker"], "s1", paths.COLD)
    docker.know(rest=f'test "$2" = {WEB} || {{ echo port is taken >&2; exit 1; }}')
    assert verb.main(parse(["cold"])) == ExitStatus.DEGRADED
    found = store.load(paths.REPORTS, "s1")
    assert found.outcome is Outcome.DEGRADED
    assert found.reason is not None
    assert "db: it does not start" in found.reason
    assert "docker start db" in render(found)


def test_after_another_boot_they_are_started_without_a_report(
    machine: Machine, docker: Docker, here: Path, monkeypatch: pytest.MonkeyPatch, programs: Programs
) -> None:
    from upgrade.cli import cold as verb

    programs.add("systemctl", "echo inactive")
    monkeypatch.setattr(verb, "Host", lambda: machine.host)
    record.stop(machine.host, ["docker"], "s1", paths.COLD)
    assert verb.main(parse(["cold"])) == ExitStatus.DONE
    assert docker.told()[1:] == [["start", DB], ["start", WEB]]
    assert not paths.REPORTS.exists()
