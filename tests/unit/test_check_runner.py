# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.check.runner``: which checks run, what becomes of what they raise, and the verdict."""

import os
import time
from dataclasses import replace

import pytest
from builders.checks import result, saying, situation

from upgrade.check import runner
from upgrade.check.model import Check, Finding, Status, failed, passed, skipped, warned
from upgrade.check.situation import Unknown
from upgrade.errors import DependencyMissing, ExitStatus, Interrupted, Refusal, UpgradeError, UsageError

IDS = ("kexec.loaded", "kexec.compiled", "memory.store", "target.kernel", "target.config")
CHECKS = tuple(saying(passed("x", "y"), id=each) for each in IDS)

PASS = passed("nvme0", "2")
WARN = warned("nvme0", "2", reason="slow", remedy="none")
FAIL = failed("nvme0", "is off", reason="it ends", remedy="switch it on")
SKIP = skipped("nvme0", "2", reason="no such file")
ROOT = skipped("nvme0", "2", reason=runner.NEEDS_ROOT)


@pytest.mark.parametrize(
    ("only", "skip", "expected"),
    [
        ([], [], IDS),
        (["kexec"], [], IDS[:2]),
        (["memory.store", "target"], [], IDS[2:]),
        (["target.*"], ["target.config"], IDS[3:4]),
        ([], ["kexec", "memory.store"], IDS[3:]),
        ([], ["*.k*"], (*IDS[:3], IDS[4])),
        (["kexec.loaded"], ["kexec"], ()),
    ],
)
def test_ids_families_and_patterns_choose(
    only: list[str], skip: list[str], expected: tuple[str, ...]
) -> None:
    assert tuple(check.id for check in runner.chosen(CHECKS, only, skip)) == expected


@pytest.mark.parametrize("pattern", ["kexec.load", "kexe", "", "store", "KEXEC.loaded", "kexec."])
def test_a_pattern_that_means_nothing_is_wrong_usage(pattern: str) -> None:
    for only, skip in (([pattern], []), ([], [pattern]), (["kexec", pattern], [])):
        with pytest.raises(UsageError, match="no check has this id") as caught:
            runner.chosen(CHECKS, only, skip)
        assert caught.value.subject == pattern
        assert "check --list" in str(caught.value.hint)


def test_a_typo_is_told_with_what_was_meant() -> None:
    with pytest.raises(UsageError) as caught:
        runner.chosen(CHECKS, [], ["memory.stroe"])
    assert str(caught.value.hint).startswith("did you mean memory.store?")


def run(*said: Finding | Exception) -> list[Finding]:
    return [each.finding for each in runner.run([saying(*said)], situation())]


def test_what_checks_say_comes_in_their_order() -> None:
    first, second = saying(PASS, WARN, id="a.b"), saying(FAIL, id="c.d")
    found = [(each.check, each.finding) for each in runner.run([first, second], situation())]
    assert found == [(first, PASS), (first, WARN), (second, FAIL)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refusal("no range", subject="memmap=1G!4G", hint="set one aside"), ExitStatus.REFUSED),
        (UsageError("no such file", subject="vmlinuz", hint="name one"), ExitStatus.USAGE),
        (DependencyMissing("not installed", subject="criu", hint="apt-get"), ExitStatus.DEPENDENCY_MISSING),
        (UpgradeError("does not answer", subject="criu", hint="look"), ExitStatus.REFUSED),
    ],
)
def test_what_is_raised_for_users_fails(error: UpgradeError, status: ExitStatus) -> None:
    before, found = run(PASS, error)
    assert before == PASS
    assert (found.status, found.exit_status) == (Status.FAIL, status)
    assert (found.subject, found.seen, found.remedy) == (error.subject, error.message, error.hint)
    assert found.reason == "not so: all is well"


def test_what_is_not_known_is_skipped() -> None:
    (found,) = run(Unknown("no such kernel", subject="the kernel to enter"))
    assert (found.status, found.subject, found.seen) == (Status.SKIP, "the kernel to enter", "no such kernel")
    assert found.reason
    assert run(Unknown("why"))[0].subject == "all is well"


def permission() -> PermissionError:
    return PermissionError(13, "Permission denied", "/proc/1/maps")


def test_what_only_root_may_read_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused = Refusal("cannot be read", subject="vmlinuz")
    refused.__cause__ = permission()
    needs = UpgradeError("needs root", status=ExitStatus.NOT_PRIVILEGED)
    for error in (permission(), refused, needs):
        (found,) = run(error)
        assert (found.status, found.reason) == (Status.SKIP, runner.NEEDS_ROOT)
    assert run(permission())[0].source == "/proc/1/maps"


def test_what_even_root_may_not_read_does_not_need_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (found,) = run(permission())
    assert (found.status, found.reason) == (Status.SKIP, "could not be read")
    assert found.seen == "/proc/1/maps: Permission denied"


def test_a_file_that_has_gone_is_skipped() -> None:
    (found,) = run(FileNotFoundError(2, "No such file or directory", "/proc/9/stat"))
    assert (found.status, found.source) == (Status.SKIP, "/proc/9/stat")
    assert "No such file" in found.seen


def test_a_bug_is_told_and_the_others_still_answer() -> None:
    broken, sound = saying(ValueError("not a number: 'x'")), saying(PASS)
    first, second = runner.run([broken, sound], situation())
    assert (first.finding.status, first.finding.seen) == (Status.SKIP, "ValueError: not a number: 'x'")
    assert "report" in first.finding.remedy
    assert second.finding is PASS


def test_a_check_that_says_nothing_is_no_pass() -> None:
    (found,) = run()
    assert found.status is Status.SKIP


def test_an_interruption_is_none_of_its_business() -> None:
    def interrupt(_situation: object) -> list[Finding]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(runner.run([Check("a.b", "title", interrupt)], situation()))


def with_status(status: ExitStatus) -> Finding:
    return replace(FAIL, exit_status=status)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ([], ExitStatus.DONE),
        ([PASS, WARN, SKIP], ExitStatus.DONE),
        ([PASS, ROOT], ExitStatus.NOT_PRIVILEGED),
        ([ROOT, FAIL], ExitStatus.REFUSED),
        ([FAIL, FAIL], ExitStatus.REFUSED),
        ([with_status(ExitStatus.DEPENDENCY_MISSING), PASS], ExitStatus.DEPENDENCY_MISSING),
        ([with_status(ExitStatus.DEPENDENCY_MISSING), FAIL], ExitStatus.REFUSED),
        ([FAIL, with_status(ExitStatus.USAGE)], ExitStatus.USAGE),
    ],
)
def test_the_verdict(said: list[Finding], status: ExitStatus) -> None:
    results = [result(each) for each in said]
    assert runner.verdict(results) is status
    error = runner.refusal(results)
    assert (error.status if error else ExitStatus.DONE) is status


def test_a_refusal_names_everything_that_failed() -> None:
    other = failed("sda", "is slow", reason="r", remedy="m")
    with pytest.raises(Refusal) as caught:
        runner.refuse(result(each) for each in (PASS, FAIL, WARN, other))
    assert str(caught.value) == "nvme0: is off; sda: is slow"
    assert str(caught.value.hint).startswith("switch it on (")
    assert runner.refusal([result(FAIL)]).hint == "switch it on"  # type: ignore[union-attr]


def test_the_wrong_usage_comes_first_in_a_refusal() -> None:
    wrong = replace(FAIL, subject="--append", exit_status=ExitStatus.USAGE)
    error = runner.refusal([result(FAIL), result(wrong)])
    assert error is not None
    assert (error.subject, error.status) == ("--append", ExitStatus.USAGE)


def test_a_run_goes_on_if_nothing_failed() -> None:
    runner.refuse([result(each) for each in (PASS, WARN, SKIP, ROOT)])


def test_how_long_a_check_took_is_told() -> None:
    def slow(_situation: object) -> list[Finding]:
        end = time.monotonic_ns() + 2_000_000
        while time.monotonic_ns() < end:
            pass
        return [PASS]

    durations: dict[str, int] = {}
    checks = [Check("a.slow", "slow", slow), saying(PASS, id="a.fast")]
    assert len(list(runner.run(checks, situation(), durations))) == 2
    assert durations["a.slow"] >= 2_000_000
    assert set(durations) == {"a.slow", "a.fast"}


def test_later_checks_know_what_has_failed() -> None:
    where = situation()
    list(runner.run([saying(PASS, WARN, SKIP), saying(replace(FAIL, subject="web"))], where))
    assert where.refused == {"web"}


def test_an_abort_is_no_finding() -> None:
    with pytest.raises(Interrupted):
        run(PASS, Interrupted("aborted"))
