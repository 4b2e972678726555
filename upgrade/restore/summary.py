# SPDX-License-Identifier: MIT
"""Writing the report: what the old kernel recorded and the new one saw, put together.

Only called when the containers run again: nothing here is downtime.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from upgrade import paths
from upgrade.clock import Clock, wall_ns
from upgrade.errors import ExitStatus
from upgrade.host import Host
from upgrade.kexec.initrd import FIRST_USERSPACE
from upgrade.report import history, store
from upgrade.report.history import Event, Record
from upgrade.report.model import ContainerOutcome, ContainerReport, Outcome, Phase, Report
from upgrade.restore import bootlog, pages
from upgrade.restore.arrival import Arrival
from upgrade.restore.ondemand import Memory
from upgrade.restore.pages import Pages
from upgrade.restore.restorer import Restored, work_directory
from upgrade.session import Session

NO_PAGES = Pages(0, 0)
T = TypeVar("T")


def write(
    host: Host,
    clock: Clock,
    arrived: Arrival,
    restored: Sequence[Restored],
    begun_at: int,
    problems: Sequence[str],
    faults: Sequence[str] = (),
) -> ExitStatus:
    """Write report and history; return what the restore's exit status is.

    :param begun_at: stamp of the begin of the restore
    :param problems: warnings
    :param faults: what makes the upgrade a degraded one, whatever became of the containers
    """
    session, rate = arrived.session, arrived.rate
    booted = {"kernel": arrived.jumped_at, "userspace": arrived.jumped_at}
    stamps = {
        **session.stamps,
        "jump": arrived.jumped_at,
        **(optional(lambda: _boot(host, clock, arrived)) or booted),
        "restore begun": begun_at,
        "restored": max(r.running_at for r in restored),  # each runs as soon as it is unlocked
    }
    downtime = stamps["restored"] - stamps["freeze"]
    counted = [_count(r) for r in restored]
    report = Report(
        **_common(host, session, restored, faults),
        downtime_seconds=rate.ns(downtime) / 1e9,
        downtime_error_seconds=(rate.error_ns(downtime) + sum(tie.error_ns for tie in session.ties)) / 1e9,
        phases=_phases(stamps, rate.hertz),
        restore_mode=_restore_mode(session, restored),
        pages_total=sum(c.total for c in counted),
        pages_copied=sum(c.copied for c in counted),
        bytes_copied=sum(c.copied_bytes for c in counted),
        containers=tuple(_container(r, c, arrived) for r, c in zip(restored, counted, strict=True)),
        warnings=(*session.warnings, *problems),
    )
    status = _save(host, report, session)
    optional(lambda: _record_jump(session, wall_ns(session.ties[-1], arrived.jumped_at, rate)))
    return status


def complete(clock: Clock, arrived: Arrival, memory: Mapping[str, Memory], status: ExitStatus) -> ExitStatus:
    """Add to the report what became of the memory that came on demand; return the restore's exit status."""
    if not memory:
        return status
    session, rate = arrived.session, arrived.rate
    tsc, now_ns = clock.tsc(), time.monotonic_ns()
    frozen_at = {dumped.container.name: dumped.frozen_at for dumped in session.containers}

    def completed(container: ContainerReport) -> ContainerReport:
        found = memory.get(container.name)
        if found is None or container.outcome is not ContainerOutcome.RESTORED:
            return container
        seconds = None
        if found.complete_ns is not None:
            since_freeze_ns = rate.ns(tsc - frozen_at[container.name]) - (now_ns - found.complete_ns)
            seconds = since_freeze_ns / 1e9
        reasons = [text for text in (container.reason, found.error) if text]
        return replace(
            container,
            memory_complete_seconds=None if found.error else seconds,
            reason="; ".join(reasons) or None,
        )

    errors = [f"{name}: {found.error}" for name, found in memory.items() if found.error]

    def change(report: Report) -> Report:
        report = replace(report, containers=tuple(map(completed, report.containers)))
        return report.degraded(errors)

    report = store.change(paths.REPORTS, session.id, change)
    for error in errors:
        print(error, file=sys.stderr)
    return _status(report)


def warn(session: Session, text: str) -> None:
    """Add a warning to the report."""
    store.change(paths.REPORTS, session.id, lambda report: replace(report, warnings=(*report.warnings, text)))


def _status(report: Report) -> ExitStatus:
    return ExitStatus.DONE if report.outcome is Outcome.UPGRADED else ExitStatus.DEGRADED


def optional(work: Callable[[], T]) -> T | None:
    """Do something that the report can do without."""
    try:
        return work()
    except Exception as e:
        print(f"not in the report: {type(e).__name__}: {e}", file=sys.stderr)
        return None


def _restore_mode(session: Session, restored: Sequence[Restored]) -> str:
    if any(r.lazy for r in restored):
        return "lazy"
    return "eager" if any(dumped.in_place for dumped in session.containers) else "copy"


def _boot(host: Host, clock: Clock, arrived: Arrival) -> dict[str, int]:
    """Return when this kernel started and when its first userspace ran."""
    found = bootlog.tsc_of((FIRST_USERSPACE,), clock, arrived.rate, host)
    start = found[bootlog.KERNEL_START]
    return {"kernel": start, "userspace": found.get(FIRST_USERSPACE, start)}


def _phases(stamps: Mapping[str, int], hertz: float) -> tuple[Phase, ...]:
    """Return the phases of the downtime; together they are all of it."""
    edges = (
        ("freeze", "freeze", "frozen"),
        ("dump", "frozen", "dumped"),
        ("capture", "dumped", "captured"),
        ("quiesce", "captured", "quiesced"),
        ("last look", "quiesced", "jump"),
        ("jump", "jump", "kernel"),
        ("kernel boot to first userspace", "kernel", "userspace"),
        ("userspace to restore", "userspace", "restore begun"),
        ("restore", "restore begun", "restored"),
    )
    return tuple(Phase(name, (stamps[end] - stamps[begin]) / hertz) for name, begin, end in edges)


def _container(restored: Restored, counted: Pages, arrived: Arrival) -> ContainerReport:
    dumped = restored.dumped
    downtime = restored.running_at - dumped.frozen_at
    back = restored.outcome != ContainerOutcome.LOST and dumped.frozen_at
    return ContainerReport(
        name=dumped.container.name,
        engine=dumped.container.engine,
        outcome=ContainerOutcome(restored.outcome),
        reason=restored.reason,
        in_place=dumped.in_place,
        downtime_seconds=arrived.rate.ns(downtime) / 1e9 if back else None,
        pages_total=counted.total,
        pages_copied=counted.copied,
        bytes_copied=counted.copied_bytes,
        tasks=dumped.tasks,
        threads=dumped.threads,
        threads_in_vdso=dumped.threads_in_vdso,
        vdso_action=dumped.vdso_action,
        dump=_dump_stats(counted, arrived),
        restore=optional(lambda: _restore_stats(work_directory(dumped))) or {},
    )


def _count(restored: Restored) -> Pages:
    dumped = restored.dumped
    return (
        optional(lambda: pages.count(paths.STORE / dumped.directory, dumped.frame_files, dumped.stragglers))
        or NO_PAGES
    )


def _dump_stats(counted: Pages, arrived: Arrival) -> dict[str, int]:
    """Return what CRIU's stats-dump would say; CRIU writes it after the hold, which never ends."""

    def microseconds(begin: str, end: str) -> int:
        stamps = arrived.session.stamps
        return arrived.rate.ns(stamps[end] - stamps[begin]) // 1000

    return {
        "freezing_time": microseconds("freeze", "frozen"),
        "frozen_time": microseconds("frozen", "quiesced"),
        "pages_written": counted.copied,
    }


def _restore_stats(work: Path) -> dict[str, int]:
    """Return what CRIU counted, under its own names; nothing if it wrote nothing."""
    from pycriu import images

    with (work / "stats-restore").open("rb") as f:
        return dict(images.load(f)["entries"][0]["restore"])


def _common(
    host: Host, session: Session, restored: Sequence[Restored], faults: Sequence[str] = ()
) -> dict[str, Any]:
    lost = [r for r in restored if r.outcome != ContainerOutcome.RESTORED]
    reasons = [*faults, *(f"{r.dumped.container.name}: {r.reason}" for r in lost)]
    return {
        "id": session.id,
        "outcome": Outcome.DEGRADED if reasons else Outcome.UPGRADED,
        "reason": "; ".join(reasons) or None,
        "host": session.host,
        "kernel_from": session.kernel_from,
        "kernel_to": host.release(),
        "command_line_from": session.command_line_from,
        "command_line_to": host.command_line(),
        "taint_before": session.taint_before,
        "taint_after": int(host.read("/proc/sys/kernel/tainted")),
        "livepatches_before": session.livepatches_before,
        "livepatches_after": tuple(host.list("/sys/kernel/livepatch")),
        "criu_version": session.criu_version,
        "started_at": session.started_at,
        "finished_at": _now(),
        "gathering": session.gathering,
        "vdso": session.vdso,
    }


def write_without_store(
    host: Host, identity: str, plan: Session | None, results: Sequence[Restored], reason: str
) -> ExitStatus:
    """Write the report of an upgrade whose memory did not come across."""
    if plan is None:
        _record(host, identity)
        print(f"{identity}: its plan is gone, too: no container could be started", file=sys.stderr)
        return ExitStatus.DEGRADED
    report = Report(
        **{**_common(host, plan, results), "outcome": Outcome.DEGRADED, "reason": reason},
        downtime_seconds=0.0,
        downtime_error_seconds=0.0,
        containers=tuple(
            ContainerReport(
                name=r.dumped.container.name,
                engine=r.dumped.container.engine,
                outcome=ContainerOutcome(r.outcome),
                reason=r.reason,
            )
            for r in results
        ),
        warnings=("the downtime is not known: its stamps were lost with the memory",),
    )
    return _save(host, report, plan)


def _save(host: Host, report: Report, session: Session) -> ExitStatus:
    store.save(paths.REPORTS, report)
    _record(host, session.id)
    print(f"{report.id}: {report.outcome}", file=sys.stderr)
    return _status(report)


def _record_jump(session: Session, at_ns: int) -> None:
    """Record the old kernel's end; it could not do so itself without writing to a frozen disk."""
    record = Record(
        event=Event.JUMP,
        at=datetime.fromtimestamp(at_ns // 10**9, UTC).isoformat(timespec="seconds"),
        boot_id=session.boot_id,
        release=session.kernel_from,
        session=session.id,
        livepatches=session.livepatches_before,
    )
    history.append(paths.HISTORY, record)


def _record(host: Host, identity: str) -> None:
    history.record_start(
        paths.HISTORY,
        Record(
            event=Event.UPGRADE,
            at=_now(),
            boot_id=host.read("/proc/sys/kernel/random/boot_id"),
            release=host.release(),
            session=identity,
            livepatches=tuple(host.list("/sys/kernel/livepatch")),
        ),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
