# SPDX-License-Identifier: MIT
"""``seamless-upgrade check``: would it work? Touches nothing."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from upgrade import plan, ranges
from upgrade.check import catalog, runner, text
from upgrade.check.situation import Situation
from upgrade.cli import SCHEMA_VERSION, answer, colour, say
from upgrade.config import Config
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.plan import Plan
from upgrade.request import Request

if TYPE_CHECKING:
    from upgrade.check.model import Result
    from upgrade.dump.gathering import Residence


def main(options: argparse.Namespace) -> int:
    """Run the checks and print what they found."""
    if options.list:
        answer(text.catalogue(catalog.checks()))
        return ExitStatus.DONE
    checks = runner.chosen(catalog.checks(), options.only, options.skip)
    host = Host()
    situation = Situation(host, request(options), Config.load(host))
    results = list(runner.run(checks, situation))
    status = runner.verdict(results)
    found = _plan(situation) if status is ExitStatus.DONE else None
    if options.json:
        answer(json.dumps(to_json(results, status, found, host), indent=2))
    else:
        answer(_text(results, status, found, host))
    return status


def request(options: argparse.Namespace) -> Request:
    """Return what the options ask for."""
    return Request(
        kernel=options.kernel,
        initrd=options.initrd,
        append=options.append,
        containers=tuple(options.container),
        cgroups=tuple(options.cgroup),
        all=options.all,
        quiesce=options.quiesce,
        gather=options.gather,
        pages=options.pages,
        restore=options.restore,
        verify=options.verify,
        skip=tuple(options.skip),
    )


def _plan(situation: Situation) -> Plan | None:
    """Return what an upgrade would do; None if that is not known, though nothing stands against it."""
    try:
        return plan.make(situation.host, situation.request, situation.config)
    except UpgradeError as e:
        say(f"seamless-upgrade: no plan: {e}")
        return None


def to_json(results: "list[Result]", status: ExitStatus, found: Plan | None, host: Host) -> dict[str, Any]:
    """Return everything for machines."""
    return {
        "schema_version": SCHEMA_VERSION,
        "ready": status is ExitStatus.DONE,
        "exit_status": int(status),
        "kernel_from": host.release(),
        "results": [each.to_json() for each in results],
        **(plan_to_json(found, host) if found else {}),
    }


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


def _text(results: "list[Result]", status: ExitStatus, found: Plan | None, host: Host) -> str:
    lines = [text.render(results, colour=colour())]
    if found:
        lines += ["", render(found, host)]
    elif status is ExitStatus.NOT_PRIVILEGED:
        lines += ["", "Not known: some checks need root."]
    elif status is not ExitStatus.DONE:
        lines += ["", "Not ready."]
    return "\n".join(lines)


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
