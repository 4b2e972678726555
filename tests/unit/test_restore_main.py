# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.restore.main``: what each of several processes does when those before it were killed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders.host import Machine
from builders.programs import Programs
from builders.session import TIES, container, dumped, session

from upgrade import paths
from upgrade.clock import frequency
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.report import store
from upgrade.report.model import ContainerOutcome, ContainerReport, Outcome, Report
from upgrade.restore import aftermath, arrival, main, summary
from upgrade.restore.arrival import Arrival
from upgrade.restore.ledger import Back, Begun, Ledger
from upgrade.restore.ondemand import Memory
from upgrade.restore.restorer import Restored
from upgrade.session import Session


class Killed(BaseException):
    """The process ends here."""


class Boot:
    """One boot with two containers; processes that restore it can be killed anywhere."""

    def __init__(self, machine: Machine, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.restored: list[str] = []
        self.started: list[str] = []
        self.locks: list[str] = []
        self.written = 0
        self.killed_at = ""
        self.reachable = True
        machine.file("/proc/cmdline", f"seamless_upgrade.session={session().id}")
        machine.file("/proc/sys/kernel/random/boot_id", "7")
        machine.file("/proc/sys/kernel/tainted", "0")
        for name in ("/a", "/b"):
            machine.cgroup(name)
        self.session = session(
            [dumped(container(name), number, checksums={}) for number, name in enumerate(("/a", "/b"))],
            links=(),
        )
        self.session.save(paths.PLAN)
        programs.add("nft")
        programs.add("criu")
        programs.add("systemctl", "echo active")
        self._replace(machine)

    def _replace(self, machine: Machine) -> None:
        patch = self.monkeypatch.setattr
        patch(main, "Host", lambda: machine.host)
        patch("os.geteuid", lambda: 0)
        patch(arrival, "open_store", self._open)
        patch(arrival, "set_wall_clock", lambda *_: None)
        patch(main, "_release", lambda *_: self.moment("release"))
        patch("upgrade.restore.restorer.Restorer._other_criu", lambda _self: "")
        patch("upgrade.engines.cgroup.CgroupEngine.restore", self._engine)
        for module in ("upgrade.restore.main", "upgrade.restore.restorer", "upgrade.restore.aftermath"):
            patch(f"{module}.cold_start", self._cold)
        patch("upgrade.netlock.lock", lambda _rules: self.locks.append("lock"))
        patch("upgrade.netlock.unlock", lambda number, _: self.locks.append(f"unlock {number}"))
        patch("upgrade.netlock.remove", lambda: self.locks.append("remove"))
        patch(summary, "write", self._write)
        patch("upgrade.restore.nudge.peers", lambda _peers: None)
        patch("upgrade.restore.frames.give_back", lambda *_: [])
        patch("memfs.checksums.damage", lambda *_: [])

    def moment(self, name: str) -> None:
        """Be killed here, if this is the moment."""
        if self.killed_at == name:
            self.killed_at = ""
            raise Killed

    def _open(self, _host: Any, _identity: str) -> Arrival:
        self.moment("open")
        if not self.reachable:
            raise UpgradeError("its contents did not survive")
        return Arrival(self.session, frequency(*TIES), TIES[-1].tsc, Path("/dev/pmem0"))

    def _engine(self, one: Any, _images: Any, unlock: Callable[[], None]) -> int:
        unlock()
        self.restored.append(one.name)
        return 1

    def _cold(self, _host: Any, one: Any, reason: str) -> tuple[str, str]:
        self.started.append(one.container.name)
        return "cold-started", reason

    def _write(self, _host: Any, _clock: Any, arrived: Arrival, results: Any, *more: Any) -> ExitStatus:
        self.moment("write")
        self.written += 1
        self.faults, self.problems = more[2], more[1]
        store.save(paths.REPORTS, report(arrived.session, results))
        return ExitStatus.DEGRADED if self.faults else ExitStatus.DONE

    def process(self, killed_at: str = "") -> int | None:
        """Start a process; None if it was killed."""
        self.killed_at = killed_at
        ledgers: list[Ledger] = []
        take = Ledger.take

        def taken(*words: Any) -> Ledger | None:
            found = take(*words)
            ledgers.extend([found] if found else [])
            return found

        try:
            with self.monkeypatch.context() as patch:
                patch.setattr("upgrade.restore.main.Ledger.take", taken)
                return main.main()
        except Killed:
            return None
        finally:
            for ledger in ledgers:  # as the kernel does
                ledger.close()


def report(record: Session, results: Sequence[Restored]) -> Report:
    """Return a short report."""
    return Report(
        id=record.id,
        outcome=Outcome.UPGRADED,
        host="host7",
        kernel_from="6.12",
        kernel_to="6.13",
        command_line_from="",
        command_line_to="",
        taint_before=0,
        taint_after=0,
        criu_version="4.1.1",
        started_at="",
        finished_at="",
        downtime_seconds=1.0,
        downtime_error_seconds=0.0,
        containers=tuple(
            ContainerReport(r.dumped.container.name, "cgroup", ContainerOutcome(r.outcome)) for r in results
        ),
    )


@pytest.fixture
def boot(machine: Machine, programs: Programs, here: Path, monkeypatch: pytest.MonkeyPatch) -> Boot:
    return Boot(machine, programs, monkeypatch)


def ledger() -> Ledger:
    found = Ledger.take(paths.LEDGER, 1)
    assert found is not None
    return found


def test_a_boot_is_restored_once(boot: Boot) -> None:
    assert boot.process() == ExitStatus.DONE
    assert sorted(boot.restored) == ["/a", "/b"]
    assert (boot.faults, boot.written) == ([], 1)
    assert boot.process() == ExitStatus.DONE
    assert (len(boot.restored), boot.written, boot.locks.count("remove")) == (2, 1, 1)


@pytest.mark.parametrize("late", [(), ("/b",), ("/a", "/b")])
def test_the_boot_waits_for_those_that_do_not_need_it(
    boot: Boot, monkeypatch: pytest.MonkeyPatch, late: tuple[str, ...]
) -> None:
    """It goes on once all are back that are not late; what may start containers waits for all."""
    seen: list[tuple[int, bool]] = []

    def notify(*assignments: str, **_: Any) -> bool:
        if "READY=1" in assignments:
            seen.append((len([name for name in boot.restored if name not in late]), paths.BACK.exists()))
        return True

    monkeypatch.setattr("upgrade.restore.fdstore.notify", notify)
    monkeypatch.setattr("upgrade.engines.cgroup.CgroupEngine.is_late", lambda _, one: one.name in late)
    assert boot.process() == ExitStatus.DONE
    assert seen[0] == (2 - len(late), False)
    assert paths.BACK.exists()


def test_one_that_died_before_anything_was_begun_only_costs_time(boot: Boot) -> None:
    assert boot.process("open") is None
    assert boot.process() == ExitStatus.DONE
    assert sorted(boot.restored) == ["/a", "/b"]
    assert (boot.faults, boot.written) == ([], 1)
    assert any("the restore process died, and was started again" in p for p in boot.problems)


def test_one_that_died_in_the_middle_is_named(boot: Boot) -> None:
    first = ledger()
    first.begin(0, Begun(False, 1.0, ()))
    first.begin(1, Begun(False, 1.0, ()))
    first.let_run(1)
    first.end(1, Back("restored", None, 5))
    first.close()
    assert boot.process() == ExitStatus.DEGRADED
    assert boot.restored == ["/a"]
    assert boot.faults == ["the restore process died while it restored /a, and was started again"]
    # what ran already is out of the new lock at once
    assert boot.locks[:2] == ["lock", "unlock 1"]
    assert boot.locks[-1] == "remove"


def test_what_is_back_is_kept_when_the_report_is_not_written(boot: Boot) -> None:
    assert boot.process("write") is None
    assert boot.process() == ExitStatus.DONE
    assert (len(boot.restored), boot.written) == (2, 1)


def test_a_report_is_not_written_twice(boot: Boot) -> None:
    assert boot.process("release") is None
    assert boot.process() == ExitStatus.DONE
    assert (len(boot.restored), boot.written) == (2, 1)
    (warning,) = store.load(paths.REPORTS, session().id).warnings
    assert "died when all containers ran already" in warning
    assert boot.process() == ExitStatus.DONE


def test_a_memory_that_was_released_already_starts_nothing_from_cold(boot: Boot) -> None:
    assert boot.process("release") is None
    boot.reachable = False
    assert boot.process() == ExitStatus.DONE
    assert (boot.started, boot.written) == ([], 1)
    assert not paths.PLAN.exists()


def test_without_its_memory_only_what_does_not_run_is_started_from_cold(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ledger()
    first.begin(0, Begun(False, 1.0, ()))
    first.end(0, Back("restored", None, 5))
    first.begin(1, Begun(False, 1.0, ()))
    first.close()
    boot.reachable = False
    results: list[Any] = []

    def write(_host: Any, _identity: str, _plan: Any, found: Any, _reason: str) -> ExitStatus:
        results.extend(found)
        return ExitStatus.DEGRADED

    monkeypatch.setattr(summary, "write_without_store", write)
    assert boot.process() == ExitStatus.DEGRADED
    assert boot.started == ["/b"]
    assert [(r.dumped.container.name, r.outcome) for r in results] == [
        ("/a", "restored"),
        ("/b", "cold-started"),
    ]


def test_helpers_are_ended_before_the_range_is_opened(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(aftermath, "end_helpers", lambda *_: order.append("helpers"))
    opened = arrival.open_store
    monkeypatch.setattr(arrival, "open_store", lambda *w: (order.append("open"), opened(*w))[1])  # type: ignore[func-returns-value]
    ledger().close()
    boot.process()
    assert order == ["helpers", "open"]


def test_what_is_wrong_with_the_second_one_keeps_nothing_from_running(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("a bug")

    for name in ("end_helpers", "settle", "let_through"):
        monkeypatch.setattr(aftermath, name, broken)
    ledger().close()
    assert boot.process() == ExitStatus.DONE
    assert sorted(boot.restored) == ["/a", "/b"]


def test_while_one_restores_another_keeps_away(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upgrade.restore.ledger.TAKE_S", 0.01)
    living = ledger()
    assert boot.process() == ExitStatus.DONE
    assert boot.restored == []
    living.close()


class Slow:
    """A page service whose memory comes late."""

    def __init__(self, *_words: Any) -> None:
        self.problems: list[str] = []
        self.ended = False

    def start(self) -> None:
        """Nothing."""

    def serves(self, _dumped: Any) -> bool:
        return False

    def wait(self) -> dict[str, Memory]:
        return {"/a": Memory(None, "only 1 of 2 MiB have come")}

    def end(self, late: Callable[[str], object]) -> None:
        late("it does not end")
        self.ended = True

    def memory(self) -> dict[str, Memory]:
        assert self.ended
        return {"/a": Memory(7, None)}


def test_the_ranges_are_given_back_when_the_page_server_ends_at_last(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "PageService", Slow)
    released: list[list[str]] = []

    def release(*_: Any) -> None:
        released.append(list(store.load(paths.REPORTS, session().id).warnings))

    monkeypatch.setattr(main, "_release", release)
    assert boot.process() == ExitStatus.DEGRADED
    assert released == [["it does not end", "the memory of /a has come after all"]]
    assert store.load(paths.REPORTS, session().id).reason == "/a: only 1 of 2 MiB have come"
