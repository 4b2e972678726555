# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.cli``: exit statuses, what goes to which stream, and JSON on failure, too."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from builders.checks import saying
from builders.host import BOOT_ID, RELEASE, Machine
from builders.kernel import bzimage
from builders.programs import Programs
from builders.session import container

from memfs.ranges import Range
from upgrade import cli, paths, plan
from upgrade.check import catalog, containers, target
from upgrade.check.model import Check, failed, passed, warned
from upgrade.cli import execute
from upgrade.cli.parser import VERBS
from upgrade.criu import CriuVersion
from upgrade.engines.runc import RuncEngine
from upgrade.errors import ExitStatus, Refusal, UpgradeError, UsageError
from upgrade.report import history, store
from upgrade.report.model import Outcome, Report
from upgrade.request import Request
from upgrade.undo import Undo

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ["--kernel", "/boot/vmlinuz"]
UPGRADE = [*KERNEL, "--cgroup", "/workload/redis"]
CHECK_SCHEMA = jsonschema.Draft202012Validator(
    json.loads((files("upgrade.check") / "schema.json").read_text())
)
FINE = passed("kexec", "works")
OFF = failed("kexec", "is off", reason="it ends", remedy="switch it on")
WITH_JSON = ("check", "run", "status", "report", "history", "abort")


class Answer:
    """What a call said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> dict[str, Any]:
        """Return standard output, which has to be one JSON object and nothing else."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Call = Callable[..., Answer]


@pytest.fixture
def call(
    machine: Machine,
    programs: Programs,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Call:
    """Return a function that calls the command, in this process, on a fake machine, as root."""
    for verb in ("check", "run", "status", "history", "execute", "recover"):
        monkeypatch.setattr(f"upgrade.cli.{verb}.Host", lambda: machine.host)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("upgrade.cli.run.POLL_S", 0.01)
    monkeypatch.setattr("upgrade.cli.status.POLL_S", 0.01)
    units(programs)

    def call_it(*words: str) -> Answer:
        capfd.readouterr()
        try:
            status = cli.main(words)
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else -1
        said = capfd.readouterr()
        return Answer(status, said.out, said.err)

    return call_it


def units(programs: Programs, on_start: str = ":", **states: str) -> None:
    """Make a systemctl: the states of units, and what happens when one is started."""
    cases = "".join(f"{name}.service) echo {state};; " for name, state in states.items())
    asked = f'case "$2" in {cases} *) echo inactive;; esac'
    programs.add("systemctl", f'case "$1" in start) {on_start};; is-active) {asked};; esac')


def found_plan() -> plan.Plan:
    """Return a plan."""
    return plan.Plan(
        request=Request("/boot/vmlinuz", cgroups=("/workload/redis",)),
        kernel=Path("/boot/vmlinuz"),
        initrd=Path("/boot/initrd.img"),
        kernel_to="6.12.57",
        command_line="quiet",
        store=Range(4 << 30, 256 << 20),
        frames=(),
        containers=(container(),),
        criu_version=CriuVersion(4, 1, 1),
        vdso={"method": "in-place", "methods": [], "symbols": [], "data_pages": [], "findings": []}
        | {"running": {"release": "a"}, "target": {"release": "b"}},
        memory_bytes=10 << 20,
        warnings=("careful",),
    )


@pytest.fixture
def possible(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Let every upgrade be possible; return the requests that were planned."""
    requests: list[Request] = []

    def make(_host: object, request: Request, _config: object, _compare: object) -> plan.Plan:
        requests.append(request)
        return found_plan()

    let_checks(monkeypatch, saying(FINE))
    monkeypatch.setattr(plan, "make", make)
    return requests


def let_checks(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    """Let these be all checks that there are."""
    monkeypatch.setattr(catalog, "checks", lambda: checks)


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let all checks pass, but no upgrade be possible."""

    def make(*_arguments: object) -> plan.Plan:
        raise error

    let_checks(monkeypatch, saying(FINE))
    monkeypatch.setattr(plan, "make", make)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_an_answer(call: Call, verb: str) -> None:
    answer = call(verb, "--help")
    assert answer.status == ExitStatus.DONE
    assert f"seamless-upgrade {verb}" in answer.out
    assert answer.err == ""


def test_the_version_and_the_help_of_all(call: Call) -> None:
    assert call("--version").out.startswith("seamless-upgrade ")
    shown = call("--help").out
    for status in ExitStatus:
        assert f" {int(status)} " in shown
    for verb in VERBS:
        assert verb in shown
    assert "execute" not in shown


WRONG = [
    [],
    ["frobnicate"],
    ["run"],
    ["check", "--kernel"],
    ["check", "--only", "kexe"],
    ["run", *UPGRADE, "--skip", "memory.stroe"],
    ["check", *KERNEL, "--colour"],
    ["run", *KERNEL, "extra"],
    ["--frobnicate"],
    ["history", "--record", "party"],
    ["report", "a", "b"],
    ["rehearse", "--from", "x"],
    ["restore", "--frobnicate"],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_usage_is_told(call: Call, words: list[str]) -> None:
    answer = call(*words)
    assert answer.status == ExitStatus.USAGE
    assert answer.out == ""
    assert answer.err.startswith("seamless-upgrade: ")
    assert "  remedy: " in answer.err


@pytest.mark.parametrize("words", [w for w in WRONG if "rehearse" not in w], ids=" ".join)
def test_wrong_usage_is_told_as_json(call: Call, words: list[str]) -> None:
    answer = call(*words, "--json")
    assert answer.status == ExitStatus.USAGE
    assert answer.json["schema_version"] == 1
    assert answer.json["error"]["exit_status"] == 2
    assert answer.json["error"]["message"]
    assert answer.err


def test_options_alone_mean_run(call: Call, possible: list[Request]) -> None:
    plain = call("--dry-run", *UPGRADE, "--all", "--no-quiesce", "--append", "debug x", "--container", "web")
    named = call("run", "--dry-run", *UPGRADE)
    assert (plain.status, named.status) == (ExitStatus.DONE, ExitStatus.DONE)
    assert possible[0] == Request(
        kernel="/boot/vmlinuz",
        append="debug x",
        containers=("web",),
        cgroups=("/workload/redis",),
        all=True,
        quiesce=False,
    )
    assert possible[1] == Request(kernel="/boot/vmlinuz", cgroups=("/workload/redis",))


def checked(answer: Answer) -> dict[str, Any]:
    """Return a check's JSON answer, which fits the schema and has the exit status in it."""
    CHECK_SCHEMA.validate(answer.json)
    if "results" in answer.json:
        assert answer.json["exit_status"] == answer.status
    return answer.json


def test_a_check_answers_the_plan(call: Call, possible: list[Request]) -> None:
    answer = call("check", *UPGRADE, "--json")
    assert (answer.status, answer.err) == (ExitStatus.DONE, "")
    found = checked(answer)
    assert found["ready"] is True
    assert (found["kernel_from"], found["kernel_to"]) == (RELEASE, "6.12.57")
    assert found["containers"][0]["cgroup"] == "/workload/redis"
    assert [each["id"] for each in found["results"]] == ["kexec.fake"]
    text = call("check", *UPGRADE)
    assert "  pass  kexec: works  [kexec.fake]" in text.out
    assert f"Ready: {RELEASE} -> 6.12.57" in text.out
    assert "warning: careful" in text.out
    assert text.err == ""


def test_all_checks_are_listed(call: Call) -> None:
    listed = call("check", "--list")
    assert listed.status == ExitStatus.DONE
    assert [line.split()[0] for line in listed.out.splitlines()] == [c.id for c in catalog.checks()]
    assert call("run", "--list").out == listed.out
    assert [c["id"] for c in call("check", "--list", "--json").json["checks"]] == [
        c.id for c in catalog.checks()
    ]


def test_the_fake_machine_is_not_ready(call: Call) -> None:
    """All real checks at once, on a machine that has next to nothing."""
    answer = call("check", *UPGRADE, "--json")
    found = checked(answer)
    assert found["ready"] is False
    assert {each["id"] for each in found["results"]} == {c.id for c in catalog.checks() if not c.asked}
    assert set(found["durations_ns"]) == {c.id for c in catalog.checks() if not c.asked}
    assert not [each for each in found["results"] if "itself is wrong" in each["reason"]]


def test_what_failed_is_told_and_nothing_is_planned(
    call: Call, monkeypatch: pytest.MonkeyPatch, possible: list[Request]
) -> None:
    let_checks(monkeypatch, saying(FINE), saying(OFF))
    data, text = call("check", *UPGRADE, "--json"), call("check", *UPGRADE)
    assert (data.status, text.status, possible) == (ExitStatus.REFUSED, ExitStatus.REFUSED, [])
    found = checked(data)
    assert (found["ready"], found["kernel_to"]) == (False, None)
    assert found["error"] == {
        "message": "is off",
        "subject": "kexec",
        "hint": "switch it on",
        "exit_status": 3,
    }
    assert [each["status"] for each in found["results"]] == ["pass", "fail"]
    assert "remedy: switch it on" in text.out
    assert text.out.endswith("1 failed, 1 passed\n\nNot ready.\n")


def test_only_some_checks_are_no_plan(
    call: Call, monkeypatch: pytest.MonkeyPatch, possible: list[Request]
) -> None:
    let_checks(monkeypatch, saying(FINE, id="kexec.a"), saying(OFF, id="host.b"))
    assert call("check", *UPGRADE, "--only", "kexec").status == ExitStatus.DONE
    assert possible == []
    assert call("check", *UPGRADE, "--skip", "host").status == ExitStatus.DONE
    assert [each.skip for each in possible] == [("host",)]


def test_wrong_usage_is_no_refusal(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    let_checks(monkeypatch, saying(OFF), *target.CHECKS)
    answer = call("check", "--kernel", "/no/such/vmlinuz", "--cgroup", "/x", "--json")
    assert answer.status == ExitStatus.USAGE
    assert checked(answer)["error"]["subject"] == "/no/such/vmlinuz"


def test_without_containers_the_host_is_checked(
    call: Call, monkeypatch: pytest.MonkeyPatch, possible: list[Request]
) -> None:
    ordinary = [check for check in containers.CHECKS if not check.asked]
    let_checks(monkeypatch, saying(FINE), *containers.CHECKS)
    answer = call("check", *KERNEL, "--json")
    assert answer.status == ExitStatus.DONE
    found = checked(answer)
    skipped = [each for each in found["results"] if each["status"] == "skip"]
    assert {each["id"] for each in skipped} == {check.id for check in ordinary}
    assert {each["seen"] for each in skipped} == {"none runs; the host is checked without them"}
    assert "containers" not in found
    assert possible == []
    assert "Nothing stands against it." in call("check", *KERNEL).out


def test_what_freezes_has_to_be_asked_for(
    call: Call, monkeypatch: pytest.MonkeyPatch, possible: list[Request]
) -> None:
    freezing = replace(saying(FINE, id="containers.fake"), asked=True)
    let_checks(monkeypatch, saying(FINE), freezing)
    ids = [each["id"] for each in checked(call("check", *UPGRADE, "--json"))["results"]]
    assert ids == ["kexec.fake"]
    ids = [each["id"] for each in checked(call("check", *UPGRADE, "--json", "--probe"))["results"]]
    assert ids == ["kexec.fake", "containers.fake"]
    answer = call("check", *UPGRADE, "--only", "containers")
    assert answer.status == ExitStatus.USAGE
    assert "--probe" in answer.err
    assert call("run", *UPGRADE, "--probe").status == ExitStatus.USAGE


def test_without_names_all_containers_are_taken(
    call: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch, possible: list[Request]
) -> None:
    monkeypatch.setattr(RuncEngine, "available", lambda _self: [container("web")])
    assert call("check", *KERNEL).status == ExitStatus.DONE
    assert possible[0].all is True


def test_the_kernel_that_was_chosen_is_named(call: Call, machine: Machine, possible: list[Request]) -> None:
    image = bzimage(gzip.compress(b"kernel"), release="6.12.57+deb13-amd64 (builder) #1 SMP")
    for name in ("vmlinuz", "initrd.img"):
        file = machine.file(f"/boot/{name}-6.12.57+deb13-amd64", "")
        file.write_bytes(image)
    taken = machine.root / "boot/vmlinuz-6.12.57+deb13-amd64"
    for words, how in (([], ", the newest installed one that does not run"), (["--kernel", str(taken)], "")):
        text, data = call("check", *words), call("check", *words, "--json")
        assert text.out.splitlines()[0] == f"From {RELEASE} to 6.12.57+deb13-amd64 ({taken}{how})"
        found = checked(data)
        assert (found["kernel"], found["kernel_to"]) == (str(taken), "6.12.57+deb13-amd64")
        assert found["kernel_named"] is bool(words)


ERRORS = [
    UpgradeError("it failed", subject="nft", hint="try again"),
    UsageError("no such file", subject="x", hint="y"),
    Refusal("too large", subject="memmap=1G!4G", hint="less"),
    UpgradeError("needs root", status=ExitStatus.NOT_PRIVILEGED),
    UpgradeError("not installed", status=ExitStatus.DEPENDENCY_MISSING),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.status.name)
def test_what_a_plan_refuses_is_not_ready(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: UpgradeError
) -> None:
    """A run would end with it, although every check passed."""
    refuse(monkeypatch, error)
    for words in (["check", *UPGRADE], ["run", "--dry-run", *UPGRADE]):
        text, data = call(*words), call(*words, "--json")
        assert text.status == data.status == error.status
        assert (text.err, data.err) == ("", "")
        if error.status is not ExitStatus.NOT_PRIVILEGED:
            assert f"Not ready: {error}\n" in text.out
            assert (f"remedy: {error.hint}" in text.out) == (error.hint is not None)
        assert checked(data)["error"] == error.to_json()
        assert data.json["ready"] is False


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.status.name)
def test_every_error_has_its_status_text_and_json(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: UpgradeError
) -> None:
    refuse(monkeypatch, error)
    text, data = call("run", *UPGRADE), call("run", *UPGRADE, "--json")
    assert text.status == data.status == error.status
    assert text.out == ""
    assert text.err.startswith(f"seamless-upgrade: {error}\n")
    assert (f"remedy: {error.hint}" in text.err) == (error.hint is not None)
    assert data.json["error"] == error.to_json()
    assert data.err == text.err


def test_an_interruption(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    refuse(monkeypatch, Refusal("x"))
    monkeypatch.setattr(plan, "make", interrupt)
    answer = call("check", *UPGRADE, "--json")
    assert answer.status == ExitStatus.INTERRUPTED
    assert answer.json["error"]["exit_status"] == 130


def test_an_error_of_the_system_is_told_as_json_too(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, PermissionError(13, "Permission denied", "/proc/iomem"))
    answer = call("check", *UPGRADE, "--json")
    assert answer.status == ExitStatus.FAILED
    assert "/proc/iomem" in checked(answer)["error"]["message"]


def test_a_check_says_what_needs_root(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = saying(PermissionError(13, "Permission denied", "/proc/1/maps"))
    let_checks(monkeypatch, saying(FINE), denied)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    data, text = call("check", *UPGRADE, "--json"), call("check", *UPGRADE)
    assert data.status == text.status == ExitStatus.NOT_PRIVILEGED
    assert checked(data)["error"]["exit_status"] == 4
    assert [each["status"] for each in data.json["results"]] == ["pass", "skip"]
    assert text.out.endswith("Not known: some checks need root.\n")


def test_only_what_needs_root_needs_root(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    let_checks(monkeypatch, saying(FINE))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert call("check", *UPGRADE, "--only", "kexec").status == ExitStatus.DONE
    assert call("check", *UPGRADE).status == ExitStatus.NOT_PRIVILEGED  # the plan does


@pytest.mark.parametrize("words", [["run", "--yes", *UPGRADE], ["abort"]])
def test_others_than_root_are_turned_away(
    call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    answer = call(*words, "--json")
    assert answer.status == ExitStatus.NOT_PRIVILEGED
    assert answer.json["error"]["exit_status"] == 4
    assert not paths.REQUEST.exists()


def test_the_restore_needs_root_and_a_session(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    assert "seamless_upgrade.session" not in Path("/proc/cmdline").read_text()
    nothing = call("restore")
    assert (nothing.status, nothing.out) == (ExitStatus.DONE, "")
    assert "nothing to restore" in nothing.err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert call("restore").status == ExitStatus.NOT_PRIVILEGED


def outcome(status: int, **error: Any) -> str:
    """Return what a run leaves when it has ended."""
    whole = {"message": "no room", "subject": "/c", "hint": "less", "exit_status": status, **error}
    return json.dumps({"outcome": "rolled-back", "error": whole})


def runs(programs: Programs, text: str, *events: str, **states: str) -> None:
    """Let the unit say some events and end."""
    lines = "".join(f"echo '{json.dumps({'text': event})}' >> {paths.EVENTS}; " for event in events)
    units(programs, f"{lines} echo '{text}' > {paths.OUTCOME}", **states)


def test_a_run_is_handed_over_and_followed(call: Call, programs: Programs, possible: list[Request]) -> None:
    paths.OUTCOME.write_text("of the run before")
    runs(programs, outcome(3), "looking at the host", "warning: careful")
    answer = call("--yes", *UPGRADE)
    assert answer.status == ExitStatus.REFUSED
    assert answer.out == ""
    assert answer.err.splitlines() == [
        "looking at the host",
        "warning: careful",
        "seamless-upgrade: /c: no room",
        "  remedy: less",
    ]
    assert ["systemctl", "start", "--no-block", paths.RUN_UNIT] in programs.calls()
    assert Request.load(paths.REQUEST) == Request("/boot/vmlinuz", cgroups=("/workload/redis",))
    assert possible == []  # the unit plans, and says what it found


@pytest.mark.parametrize("status", [1, 3, 6])
def test_a_run_answers_as_json(call: Call, programs: Programs, status: int) -> None:
    runs(programs, outcome(status, subject=None, hint=None), "step")
    answer = call("run", "--yes", "--json", *UPGRADE)
    assert answer.status == status
    assert answer.json["changed"] is False
    assert (answer.json["outcome"], answer.json["error"]["exit_status"]) == ("rolled-back", status)
    assert answer.err == "step\nseamless-upgrade: no room\n"


@pytest.mark.parametrize("state", ["active", "activating", "deactivating"])
def test_one_run_at_a_time(call: Call, programs: Programs, state: str) -> None:
    paths.OUTCOME.write_text("{}")
    units(programs, **{"seamless-upgrade": state})
    answer = call("run", "--yes", "--json", *UPGRADE)
    assert answer.status == ExitStatus.REFUSED
    assert paths.OUTCOME.read_text() == "{}"


def test_without_a_terminal_nobody_is_asked(
    call: Call, possible: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        answer = call("run", *UPGRADE, "--json")
    assert answer.status == ExitStatus.USAGE
    assert "--yes" in answer.json["error"]["hint"]
    assert not paths.REQUEST.exists()


@pytest.mark.parametrize(
    ("typed", "status"), [("y\n", 1), ("YES\n", 1), ("n\n", 130), ("\n", 130), ("", 130)]
)
def test_on_a_terminal_one_is_asked(
    call: Call,
    programs: Programs,
    possible: list[Request],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    status: int,
) -> None:
    runs(programs, outcome(1))
    master, slave = os.openpty()
    os.write(master, typed.encode() or b"\x04")
    with os.fdopen(slave) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        answer = call("run", *UPGRADE)
    os.close(master)
    assert answer.status == status
    assert "Upgrade now? [y/N]" in answer.err
    assert f"Ready: {RELEASE} -> 6.12.57" in answer.err
    assert answer.out == ""
    assert paths.REQUEST.exists() == (status == 1)


def test_what_the_checks_say_is_known_before_the_question(
    call: Call, possible: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = warned("eth0", "is slow", reason="it takes time", remedy="wait")
    for found, status in ((slow, ExitStatus.INTERRUPTED), (OFF, ExitStatus.REFUSED)):
        let_checks(monkeypatch, saying(FINE), saying(found), replace(saying(OFF), in_run=False))
        master, slave = os.openpty()
        os.write(master, b"n\n")
        with os.fdopen(slave) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            answer = call("run", *UPGRADE)
        os.close(master)
        assert answer.status == status
        assert found.seen in answer.err
        assert FINE.seen not in answer.err
        assert ("Upgrade now?" in answer.err) == (found is slow)


def test_a_unit_that_does_not_start_is_noticed(
    call: Call, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upgrade.cli.run.UNIT_START_S", 0.05)
    answer = call("run", "--yes", *UPGRADE)
    assert answer.status == ExitStatus.FAILED
    assert "did not start" in answer.err


def test_a_unit_that_is_slow_to_start_is_waited_for(
    call: Call, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To say of an upgrade that goes on that it did not start would be worse than to wait."""
    monkeypatch.setattr("upgrade.cli.run.UNIT_START_S", 0.05)
    asked: list[bool] = []

    def busy() -> bool:
        asked.append(True)
        if len(asked) == 4:  # the first is asked before it is started
            paths.OUTCOME.write_text(outcome(1))
        return 1 < len(asked) < 8

    monkeypatch.setattr("upgrade.cli.unit.is_busy", busy)
    answer = call("run", "--yes", *UPGRADE)
    assert (
        len(asked) == 8
    )  # its unit has ended, too: what it leaves behind is undone, and another run may begin
    assert answer.status == ExitStatus.FAILED
    assert "no room" in answer.err
    assert "did not start" not in answer.err


def test_ctrl_c_aborts_the_run_and_tells_how_it_ended(call: Call, programs: Programs) -> None:
    stopped = f"echo '{outcome(130)}' > {paths.OUTCOME}"
    programs.add(
        "systemctl",
        f'case "$1" in start) echo \'{{"text": "step"}}\' > {paths.EVENTS};; stop) {stopped};; esac',
    )
    before = signal.getsignal(signal.SIGINT)

    def press() -> None:
        deadline = time.monotonic() + 5
        while not paths.EVENTS.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    answer = call("run", "--yes", *UPGRADE)
    presser.join()
    assert answer.status == ExitStatus.INTERRUPTED
    assert ["systemctl", "stop", paths.RUN_UNIT] in programs.calls()
    assert "aborting" in answer.err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("state", "changed"), [("active", True), ("activating", True), ("inactive", False)])
def test_abort_says_whether_there_was_something_to_abort(
    call: Call, programs: Programs, state: str, changed: bool
) -> None:
    units(programs, **{"seamless-upgrade": state})
    answer = call("abort", "--json")
    assert (answer.status, answer.json["changed"]) == (ExitStatus.DONE, changed)
    assert (["systemctl", "stop", paths.RUN_UNIT] in programs.calls()) == changed
    assert call("abort").out.strip() in ("aborted; the containers run on", "no upgrade runs")


def report(identity: str, result: Outcome) -> Report:
    return Report(
        id=identity,
        outcome=result,
        host="h",
        kernel_from="6.1",
        kernel_to="6.2",
        command_line_from="",
        command_line_to="",
        taint_before=0,
        taint_after=0,
        criu_version="4.1",
        started_at="2026-11-22T10:35:12Z",
        finished_at="2026-11-22T10:35:40Z",
        downtime_seconds=6.5,
        downtime_error_seconds=0.01,
        reason=None if result is Outcome.UPGRADED else "why",
    )


def test_reports_are_shown(call: Call, here: Path) -> None:
    store.save(paths.REPORTS, report("one", Outcome.UPGRADED))
    store.save(paths.REPORTS, report("two", Outcome.DEGRADED))
    os.utime(paths.REPORTS / "one.json", (1, 1))
    assert call("report", "--json").json["id"] == "two"
    shown = call("report", "one", "--json")
    assert (shown.status, shown.json["id"], shown.err) == (ExitStatus.DONE, "one", "")
    text = call("report", "one")
    assert "6.1" in text.out
    assert "\x1b" not in text.out


@pytest.mark.parametrize("words", [["report"], ["report", "none"], ["report", "../../etc/passwd"]])
def test_a_report_that_is_missing(call: Call, words: list[str]) -> None:
    answer = call(*words, "--json")
    assert answer.status == ExitStatus.FAILED
    assert answer.json["error"]["hint"]


@pytest.mark.parametrize(
    ("result", "waited"),
    [
        (Outcome.UPGRADED, ExitStatus.DONE),
        (Outcome.DEGRADED, ExitStatus.DEGRADED),
        (Outcome.FAILED, ExitStatus.FAILED),
    ],
)
def test_status_waits_for_the_end_and_has_its_status(
    call: Call, machine: Machine, result: Outcome, waited: ExitStatus
) -> None:
    machine.file("/proc/cmdline", "seamless_upgrade.session=one")
    store.save(paths.REPORTS, report("one", result))
    store.save(paths.REPORTS, report("two", Outcome.UPGRADED))
    answer = call("status", "--json")
    assert (answer.status, answer.json["state"]) == (ExitStatus.DONE, "idle")
    assert answer.json["last"]["id"] == "one"
    assert call("status", "--wait").status == waited
    assert "downtime 6.500 s" in call("status").out


def test_status_without_any_upgrade(call: Call) -> None:
    answer = call("status", "--json")
    assert (answer.status, answer.json["state"], answer.json["last"]) == (ExitStatus.DONE, "idle", None)
    assert call("status", "--wait").status == ExitStatus.DONE


@pytest.mark.parametrize(
    ("states", "session", "state"),
    [
        ({"seamless-upgrade": "activating"}, "", "upgrading"),
        ({"seamless-upgrade": "deactivating"}, "", "upgrading"),
        ({"seamless-upgrade-restore": "activating"}, "seamless_upgrade.session=x", "restoring"),
        ({"seamless-upgrade-restore": "inactive"}, "seamless_upgrade.session=x", "restoring"),
        ({"seamless-upgrade-restore": "failed"}, "seamless_upgrade.session=x", "idle"),
        ({"seamless-upgrade-restore": "activating"}, "", "idle"),
    ],
)
def test_what_goes_on(
    call: Call, machine: Machine, programs: Programs, states: dict[str, str], session: str, state: str
) -> None:
    machine.file("/proc/cmdline", f"quiet {session}")
    units(programs, **states)
    assert call("status", "--json").json["state"] == state


def test_ranges_that_are_being_given_back_are_waited_for(
    call: Call, machine: Machine, programs: Programs, here: Path
) -> None:
    machine.file("/proc/cmdline", "quiet seamless_upgrade.session=x")
    units(programs, **{"seamless-upgrade-restore": "active"})
    (paths.REPORTS / "x.json").parent.mkdir(exist_ok=True)
    machine.file(str(paths.PLAN), "{}")
    events = f"/sys/fs/cgroup/system.slice/{paths.RESTORE_UNIT}/cgroup.events"
    machine.file(events, "populated 1\nfrozen 0")
    assert call("status", "--json").json["state"] == "restoring"
    machine.file(events, "populated 0\nfrozen 0")
    assert call("status", "--json").json["state"] == "idle"


def test_what_the_page_server_still_brings_is_shown(call: Call, machine: Machine, programs: Programs) -> None:
    """However long it takes: until then the ranges are not memory again."""
    machine.file("/proc/cmdline", "seamless_upgrade.session=one")
    store.save(paths.REPORTS, report("one", Outcome.UPGRADED))
    told = {"name": "/a", "total_bytes": 300 << 20, "done_bytes": 100 << 20, "faults": 1, "finished_at": None}
    progress = paths.PAGES.with_name("pages-progress.json")
    progress.write_text(json.dumps({"containers": [{**told, "error": "slow"}]}))
    assert call("status", "--json").json["memory"] == []
    machine.file(str(paths.PAGES), "{}")
    units(programs, **{"seamless-upgrade-restore": "active"})
    answer = call("status", "--json").json
    assert (answer["state"], answer["memory"]) == ("restoring", [{**told, "error": "slow"}])
    assert "serves /a: 100 of 300 MiB of its memory are back; slow" in call("status").out


def test_waiting_for_a_restore_that_failed_is_no_success(
    call: Call, machine: Machine, programs: Programs
) -> None:
    machine.file("/proc/cmdline", "seamless_upgrade.session=x")
    units(programs, **{"seamless-upgrade-restore": "failed"})
    assert call("status", "--wait").status != ExitStatus.DONE


def test_waiting_for_a_run_that_was_rolled_back_is_no_success(call: Call) -> None:
    store.save(paths.REPORTS, report("of the year before", Outcome.UPGRADED))
    paths.OUTCOME.write_text(outcome(3))
    assert call("status", "--wait").status == ExitStatus.REFUSED


def test_waiting_is_bounded(call: Call, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upgrade.cli.status.WAIT_S", 0.05)
    units(programs, **{"seamless-upgrade": "active"})
    answer = call("status", "--wait", "--json")
    assert answer.status == ExitStatus.FAILED
    assert "still upgrading" in answer.json["error"]["message"]


def test_the_history_is_written_and_shown(call: Call, machine: Machine) -> None:
    assert call("history", "--record", "boot").status == ExitStatus.DONE
    assert call("history", "--record", "boot").out == ""
    (record,) = history.read(paths.HISTORY)
    assert (record.event, record.boot_id, record.release) == (history.Event.BOOT, BOOT_ID, RELEASE)
    shown = call("history", "--json")
    assert shown.json["kernels"][0]["ended"] == "running"
    assert RELEASE in call("history").out
    assert call("history", "--record", "shutdown").status == ExitStatus.DONE
    assert [r.event for r in history.read(paths.HISTORY)] == [history.Event.BOOT, history.Event.SHUTDOWN]


def test_a_boot_by_an_upgrade_is_recorded_as_one(call: Call, machine: Machine) -> None:
    machine.file("/proc/cmdline", "quiet seamless_upgrade.session=s1")
    call("history", "--record", "boot")
    assert history.read(paths.HISTORY)[0].event == history.Event.UPGRADE
    assert history.read(paths.HISTORY)[0].session == "s1"


class Broken:
    """A transaction that ends in an error."""

    error: Exception = RuntimeError("bug")

    def __init__(self, *_arguments: object) -> None:
        pass

    def run(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Refusal("too large", subject="x"), ExitStatus.REFUSED, "too large"),
        (RuntimeError("bug"), ExitStatus.FAILED, "internal error: RuntimeError: bug"),
    ],
)
def test_the_unit_tells_how_it_ended(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception, status: ExitStatus, message: str
) -> None:
    monkeypatch.setattr(execute, "Transaction", type("T", (Broken,), {"error": error}))
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    Request("/boot/vmlinuz").save(paths.REQUEST)
    try:
        assert call("execute").status == status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    left = json.loads(paths.OUTCOME.read_text())
    assert left["error"]["message"] == message
    assert left["error"]["exit_status"] == status
    assert not paths.REQUEST.exists()


def killed_run(machine: Machine) -> None:
    """Leave what a run leaves that was killed early."""
    machine.file("/proc/self/cgroup", "0::/system.slice/seamless-upgrade.service")
    Request("/boot/vmlinuz").save(paths.REQUEST)


def test_a_killed_run_is_undone_and_told(call: Call, machine: Machine) -> None:
    killed_run(machine)
    plan_file = machine.file("/plan", "x")
    Undo(machine.host, paths.UNDO).push("remove_file", path="/plan")
    assert call("recover").status == ExitStatus.DONE
    assert not plan_file.exists()
    assert not paths.REQUEST.exists()
    assert json.loads(paths.OUTCOME.read_text())["error"]["exit_status"] == 1


def test_a_run_that_was_killed_before_it_did_anything_is_told_too(call: Call, machine: Machine) -> None:
    """Else the command that follows it would wait for ever, and the unit could start the request again."""
    killed_run(machine)
    assert call("recover").status == ExitStatus.DONE
    assert paths.OUTCOME.exists()
    assert not paths.REQUEST.exists()


def test_a_run_that_ended_by_itself_is_left_alone(call: Call, machine: Machine) -> None:
    killed_run(machine)
    paths.OUTCOME.write_text(outcome(3))
    assert call("recover").status == ExitStatus.DONE
    assert json.loads(paths.OUTCOME.read_text())["error"]["exit_status"] == 3


def test_what_could_not_be_undone_is_told_and_not_denied(call: Call, machine: Machine) -> None:
    killed_run(machine)
    (machine.root / "busy").mkdir()
    Undo(machine.host, paths.UNDO).push("remove_file", path="/busy")
    answer = call("recover")
    assert answer.status == ExitStatus.FAILED
    assert "could not undo remove_file" in answer.err
    assert "everything was undone" not in paths.OUTCOME.read_text()


def test_what_could_not_be_undone_is_tried_again_and_keeps_others_away(
    call: Call, machine: Machine, programs: Programs
) -> None:
    killed_run(machine)
    (machine.root / "busy").mkdir()
    Undo(machine.host, paths.UNDO).push("remove_file", path="/busy")
    Undo(machine.host, paths.UNDO).push("remove_file", path="/there")
    assert call("recover").status == ExitStatus.FAILED
    machine.file("/proc/self/cgroup", "0::/user.slice/session-1.scope")  # now by hand
    answer = call("recover", "--json")
    assert answer.status == ExitStatus.FAILED
    assert "could not undo remove_file" in answer.json["error"]["message"]
    assert "recover" in answer.json["error"]["hint"]
    (machine.root / "busy").rmdir()
    answer = call("recover", "--json")
    assert (answer.status, answer.json["undone"]) == (ExitStatus.DONE, ["remove_file"])
    assert not paths.UNDO.exists()
    assert "nothing to undo" in call("recover").out


def test_nobody_undoes_a_run_that_goes_on(call: Call, machine: Machine, programs: Programs) -> None:
    machine.file("/proc/self/cgroup", "0::/user.slice/session-1.scope")
    there = machine.file("/there", "x")
    Undo(machine.host, paths.UNDO).push("remove_file", path="/there")
    units(programs, **{"seamless-upgrade": "active"})
    assert call("recover").status == ExitStatus.REFUSED
    assert there.exists()


def test_an_error_says_what_was_not_undone(
    call: Call, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Left(Broken):
        def run(self) -> None:
            Undo(machine.host, paths.UNDO).push("thaw", cgroups=["/a"])
            raise UpgradeError("a page moved", hint="try again")

    monkeypatch.setattr(execute, "Transaction", Left)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    Request("/boot/vmlinuz").save(paths.REQUEST)
    try:
        call("execute")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    told = json.loads(paths.OUTCOME.read_text())["error"]
    assert told["message"] == "a page moved; not undone at the first try: thaw"
    assert told["hint"].startswith("try again; seamless-upgrade recover")


def command(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-m", "upgrade", *words], stderr=subprocess.PIPE, env=environment, **options
    )


@pytest.mark.parametrize("words", [["history", "--json"], ["report", "no-such-report", "--json"], ["--json"]])
def test_a_reader_that_has_gone_is_no_traceback(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = command(*words, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=20)
    assert process.returncode in (ExitStatus.FAILED, ExitStatus.USAGE)
    assert b"Traceback" not in err


def test_the_module_is_the_command() -> None:
    process = command("--json", stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=20)
    assert process.returncode == ExitStatus.USAGE
    assert json.loads(out)["error"]["exit_status"] == 2
    assert err.startswith(b"seamless-upgrade: ")


@pytest.mark.parametrize("verb", WITH_JSON)
def test_every_verb_takes_json(call: Call, verb: str) -> None:
    assert "--json" in call(verb, "--help").out
