# SPDX-License-Identifier: MIT
"""``seamless-upgrade check``: would it work? Touches nothing."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from upgrade import plan, ranges
from upgrade.check import catalog, runner, text
from upgrade.check.situation import Situation, Target, Unknown
from upgrade.cli import SCHEMA_VERSION, answer, colour, say
from upgrade.config import Config
from upgrade.errors import ExitStatus, UpgradeError, UsageError
from upgrade.host import Host
from upgrade.plan import Plan
from upgrade.request import Request

if TYPE_CHECKING:
    from upgrade.check.model import Check, Result
    from upgrade.dump.gathering import Residence


def main(options: argparse.Namespace) -> int:
    """Run the checks and print what they found."""
    if options.list:
        _list(as_json=options.json)
        return ExitStatus.DONE
    checks = _chosen(options)
    host = Host()
    situation = Situation(host, _of_all(request(options)), Config.load(host))
    durations: dict[str, int] = {}
    results = list(runner.run(checks, situation, durations))
    against, found = runner.refusal(results), None
    if against is None and not options.only and _has_containers(situation):
        try:
            found = plan.make(host, situation.request, situation.config, lambda: situation.comparison)
        except UpgradeError as e:  # a run would end with it
            against = e
    if options.json:
        answer(json.dumps(to_json(situation, results, durations, against, found), indent=2))
    else:
        answer(_text(situation, results, against, found))
    return ExitStatus.DONE if against is None else against.status


def _chosen(options: argparse.Namespace) -> "list[Check]":
    """Return the checks to run. Those that touch something have to be asked for."""
    found = runner.chosen(catalog.checks(), options.only, options.skip)
    checks = [check for check in found if options.probe or not check.asked]
    if found and not checks:
        raise UsageError(
            "freezes the containers for a moment", subject=found[0].id, hint="add --probe if you want that"
        )
    return checks


def _list(*, as_json: bool) -> None:
    checks = catalog.checks()
    named = [{"id": each.id, "title": each.title} for each in checks]
    answer(
        json.dumps({"schema_version": SCHEMA_VERSION, "checks": named}, indent=2)
        if as_json
        else text.catalogue(checks)
    )


def request(options: argparse.Namespace) -> Request:
    """Return what the options ask for."""
    return Request(
        kernel=options.kernel,
        initrd=options.initrd,
        append=options.append,
        containers=tuple(options.container),
        cgroups=tuple(options.cgroup),
        units=tuple(options.unit),
        all=options.all,
        cold=tuple(dict.fromkeys(options.cold)),
        quiesce=options.quiesce,
        gather=options.gather,
        pages=options.pages,
        restore=options.restore,
        verify=options.verify,
        clocks=options.clocks,
        skip=tuple(options.skip),
    )


def _of_all(asked: Request) -> Request:
    """Return the request for all containers if it names none: to look at them does no harm."""
    named = asked.containers or asked.cgroups or asked.units or asked.all
    return asked if named else replace(asked, all=True)


def _has_containers(situation: Situation) -> bool:
    """Tell whether there is something to plan for; what cannot be found is left to the plan to say."""
    try:
        return bool(situation.find_containers())
    except Unknown:
        return False
    except (UpgradeError, OSError):
        return True


def to_json(
    situation: Situation,
    results: "list[Result]",
    durations: Mapping[str, int],
    against: UpgradeError | None,
    found: Plan | None,
) -> dict[str, Any]:
    """Return everything for machines."""
    target = _target(situation)
    return {
        "schema_version": SCHEMA_VERSION,
        "ready": against is None,
        "exit_status": int(ExitStatus.DONE if against is None else against.status),
        **({"error": against.to_json()} if against else {}),
        "kernel_from": situation.host.release(),
        "kernel_to": target.release if target else None,
        "kernel": str(target.path) if target else None,
        "kernel_named": situation.request.kernel is not None,
        "results": [each.to_json() for each in results],
        "durations_ns": dict(durations),
        **(plan_to_json(found, situation.host) if found else {}),
    }


def _target(situation: Situation) -> Target | None:
    try:
        return situation.target
    except (Unknown, OSError):
        return None


def plan_to_json(found: Plan, host: Host) -> dict[str, Any]:
    """Return a plan for machines."""
    return {
        "kernel_to": found.kernel_to,
        "kernel": str(found.kernel),
        "initrd": str(found.initrd),
        "command_line": found.command_line,
        "store": {"start_bytes": found.store.start_bytes, "size_bytes": found.store.size_bytes},
        "frames": [ranges.describe(host, span) for span in found.frames],
        "residence": [each.to_json() for each in _residences(found, host)],
        "memory_bytes": found.memory_bytes,
        "criu_version": str(found.criu_version),
        "containers": [
            {"name": c.name, "engine": c.engine, "cgroup": c.cgroup, "pid": c.root_pid}
            for c in found.containers
        ],
        "vdso": dict(found.vdso),
        "warnings": list(found.warnings),
    }


def _residences(found: Plan, host: Host) -> "list[Residence]":
    from upgrade.dump import gathering  # numpy

    try:
        return gathering.residences(host, found.containers, found.frames) if found.frames else []
    except OSError as e:  # ENOTTY: no PAGEMAP_SCAN before Linux 6.7
        say(f"seamless-upgrade: it is not known where memory lies: {e}")
        return []


def _where(found: Plan) -> str:
    if not found.frames:
        return f"copied to {found.store}"
    return f"stays in {', '.join(map(str, found.frames))}, metadata goes to {found.store}"


def _text(
    situation: Situation, results: "list[Result]", against: UpgradeError | None, found: Plan | None
) -> str:
    lines = [*_headline(situation), text.render(results, colour=colour()), ""]
    if found:
        lines += [render(found, situation.host)]
    elif against is None:
        lines += ["Nothing stands against it."]
    elif against.status is ExitStatus.NOT_PRIVILEGED:
        lines += ["Not known: some checks need root."]
    elif runner.refusal(results):
        lines += ["Not ready."]
    else:
        lines += [f"Not ready: {against}", *([f"  remedy: {against.hint}"] if against.hint else [])]
    return "\n".join(lines)


def _headline(situation: Situation) -> list[str]:
    """Return which kernel it is about; nothing if that is not known."""
    target = _target(situation)
    if target is None:
        return []
    how = "" if situation.request.kernel else ", the newest installed one that does not run"
    return [f"From {situation.host.release()} to {target.release} ({target.path}{how})", ""]


def render(found: Plan, host: Host) -> str:
    """Return a plan for people."""
    from upgrade.report.text import render_vdso

    lines = [
        f"Ready: {host.release()} -> {found.kernel_to}",
        "",
        f"  kernel      {found.kernel}",
        f"  initrd      {found.initrd}",
        f"  memory      {found.memory_bytes >> 20} MiB of containers; {_where(found)}",
        f"  CRIU        {found.criu_version}",
        "",
        "Containers",
        *(f"  {c.name}  ({c.engine}, PID {c.root_pid}, cgroup {c.cgroup})" for c in found.containers),
        *(["", "Memory", *(f"  {each}" for each in _residences(found, host))] if found.frames else []),
        "",
        "vDSO",
        *(f"  {line}" for line in render_vdso(found.vdso)),
        *(f"warning: {warning}" for warning in found.warnings),
    ]
    return "\n".join(lines)
