# SPDX-License-Identifier: MIT
"""``prepare`` and ``unprepare``: what is to be done, and doing it so that a failure leaves the host as it was."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from memfs import hotplug, ranges
from memfs.ranges import Range
from upgrade import files, plan, process
from upgrade.errors import Refusal
from upgrade.host import Host
from upgrade.prepare import grub, layout, loader, memory, pidfloor, units
from upgrade.prepare import record as records
from upgrade.prepare.loader import Loader
from upgrade.prepare.outcome import Outcome
from upgrade.prepare.record import Record
from upgrade.process import run


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which ranges, and what has to be done for them: nothing without a loader."""

    spans: tuple[Range, ...]
    record: Record
    loader: Loader | None = None
    old: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def prepare(host: Host, asked: str | None, *, dry_run: bool = False) -> Outcome:
    """Make a host ready.

    :param asked: what ``--memory`` says
    :raises UpgradeError: nothing is changed then
    """
    units.refuse_without_command(host)
    known = _known(host)
    choice = _choose(host, known, asked)
    missing, disabled = units.missing(host), units.disabled(host)
    record = replace(
        choice.record,
        installed=tuple(
            dict.fromkeys([*choice.record.installed, *(f"{units.TARGET}/{name}" for name in missing)])
        ),
        enabled=tuple(dict.fromkeys([*choice.record.enabled, *disabled])),
    )
    changed = bool(choice.loader or missing or disabled)
    commands = choice.loader.commands() if choice.loader else []
    # written even if only the wish is another, with the same result: it is compared the next time
    remembered = record != known and (changed or known is not None)
    written = [f"{units.TARGET}/{name}" for name in missing]
    written += [_path(host, choice.loader)] if choice.loader else []
    written += [records.FILE] if remembered else []
    if (remembered or changed) and not dry_run:
        _apply(host, choice, record, missing, disabled)
    running = ranges.parse_command_line(host.command_line())
    return Outcome(
        changed=changed,
        reboot_needed=any(span not in running for span in choice.spans),
        dry_run=dry_run,
        by_hand=not record.loader,
        boot_loader=record.loader or None,
        spans=choice.spans,
        nodes=record.nodes,
        files=tuple(written),
        commands=tuple(tuple(command) for command in commands),
        units=tuple(disabled),
        pid_floor=pidfloor.floor(os.cpu_count() or 1),
        warnings=(*choice.warnings, *_lacking()),
    )


def unprepare(host: Host, *, dry_run: bool = False) -> Outcome:
    """Take back what :func:`prepare` did, and nothing else.

    :raises UpgradeError: the boot loader is as it was then
    """
    record = _known(host)
    if record is None:
        return Outcome(changed=False, reboot_needed=False, dry_run=dry_run)
    commands: list[list[str]] = []
    touched = list(record.installed)
    if record.loader:
        where = loader.named(host, record.loader)
        commands = where.commands()
        touched.append(_path(host, where))
        if not dry_run:
            where.unset(record.arguments, created=record.created)
    if not dry_run:
        enabled = [name for name in record.enabled if name not in units.disabled(host)]
        units.disable(host, enabled)
        units.remove(host, record.installed)
        Record.remove(host)
    running = ranges.parse_command_line(host.command_line())
    return Outcome(
        changed=True,
        reboot_needed=any(span in running for span in record.spans),
        dry_run=dry_run,
        boot_loader=record.loader or None,
        spans=record.spans,
        nodes=record.nodes,
        files=(*touched, records.FILE),
        commands=tuple(tuple(command) for command in commands),
        units=record.enabled,
    )


def _known(host: Host) -> Record | None:
    """Return what was done before; a drop-in of ours without a record counts, too."""
    record = Record.load(host)
    text = files.read(host.path(grub.DROP_IN))
    if record is not None or text is None:
        return record
    spans = ranges.parse_command_line(" ".join(text.replace("'", " ").split()))
    return Record(loader=grub.Grub.name, arguments=tuple(map(str, spans)), created=True)


def _choose(host: Host, known: Record | None, asked: str | None) -> _Choice:
    record = known or Record()
    running = ranges.parse_command_line(host.command_line())
    if not record.loader and running:
        return _by_hand(running, record, asked)
    if record.loader and asked in (None, record.asked):
        where = loader.named(host, record.loader)
        again = None if where.is_set(record.arguments) else where
        return _Choice(record.spans, record, again, record.arguments)
    where_or_why = _find(host)
    if not record.loader and not isinstance(where_or_why, Refusal):
        configured = ranges.parse_command_line(where_or_why.command_line())
        if configured:
            return _by_hand(configured, record, asked)
    return _anew(host, record, asked, where_or_why)


def _anew(host: Host, record: Record, asked: str | None, where: Loader | Refusal) -> _Choice:
    """Return ranges chosen now."""
    seen = memory.read(host, record.spans)
    slots = ranges.KASLR_RANGES - _others(host)
    if slots < 2:
        raise Refusal(
            f"{_others(host)} entries of memmap= are there already: with more than {ranges.KASLR_RANGES} the kernel "
            "switches its physical address randomisation off",
            subject="command line",
            hint="take some of them away",
        )
    wanted = layout.parse_memory(asked, seen.ram_bytes) if asked is not None else None
    found = layout.choose(seen, wanted, slots)
    arguments = tuple(map(str, found.spans))
    if isinstance(where, Refusal):
        by_hand = f"add these to the kernel's command line by hand, and reboot once: {' '.join(arguments)}"
        raise Refusal(where.message, subject=where.subject, hint=by_hand)
    nodes = {placed.span: placed.node for placed in (found.store, *found.frames)}
    new = replace(
        record,
        loader=where.name,
        arguments=arguments,
        nodes=tuple(nodes[span] for span in found.spans),
        asked=asked,
        created=record.created if record.loader else not where.file.exists(),
    )
    done = record.arguments == arguments and where.is_set(arguments)
    return _Choice(found.spans, new, None if done else where, record.arguments, found.warnings)


def _by_hand(found: Sequence[Range], record: Record, asked: str | None) -> _Choice:
    if asked is not None:
        raise Refusal(
            f"ranges are set already, and not by prepare: {' '.join(map(str, found))}",
            subject="--memory",
            hint="leave it out to keep them; or take them out of the boot loader's configuration and reboot first",
        )
    few = () if len(found) > 1 else ("there is no range for page frames: pages are copied",)
    return _Choice(tuple(found), record, warnings=few)


def _find(host: Host) -> Loader | Refusal:
    try:
        return loader.find(host)
    except Refusal as e:
        return e


def _others(host: Host) -> int:
    """Return how many memmap= entries the command line has that are not ours."""
    line = host.command_line()
    entries = [
        entry
        for word in line.split()
        if word.startswith("memmap=")
        for entry in word.removeprefix("memmap=").split(",")
    ]
    return len(entries) - len(ranges.parse_command_line(line))


def _apply(
    host: Host, choice: _Choice, record: Record, missing: Sequence[str], disabled: Sequence[str]
) -> None:
    """Do it; the last thing that can fail is the boot loader, and everything before it has its undo."""
    text = files.read(host.path(records.FILE))
    with ExitStack() as undo:
        undo.callback(_restore_record, host, text)
        record.save(host)
        undo.callback(units.remove, host, [f"{units.TARGET}/{name}" for name in missing])
        units.install(host, missing)
        undo.callback(units.disable, host, disabled)
        units.enable(host, disabled)
        if choice.loader is not None:
            choice.loader.set(record.arguments, choice.old)
        undo.pop_all()


def _restore_record(host: Host, text: str | None) -> None:
    if text is None:
        Record.remove(host)
    else:
        files.write(host.path(records.FILE), text)


def _path(host: Host, where: Loader) -> str:
    return f"/{where.file.relative_to(host.root)}"


def _lacking() -> list[str]:
    """Return warnings about what an upgrade or the next boot will want."""
    found = [
        f"{program} is not installed: apt-get install {process.PACKAGES.get(program, program)}"
        for program in (*plan.PROGRAMS, *plan.FRAMES_PROGRAMS)
        if shutil.which(program, path=process.PATH) is None
    ]
    if shutil.which("modprobe", path=process.PATH):
        said = run(["modprobe", "--dry-run", "--all", *hotplug.MODULES], check=False).stderr.strip()
        if said:
            found.append(
                f"this kernel lacks a driver that makes memory of the ranges: {said.splitlines()[0]}"
            )
    return found
