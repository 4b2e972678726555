# SPDX-License-Identifier: MIT
"""``seamless-upgrade check``: would it work? Touches nothing."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from upgrade import plan, ranges
from upgrade.cli import SCHEMA_VERSION, answer, say
from upgrade.config import Config
from upgrade.errors import ExitStatus
from upgrade.host import Host
from upgrade.plan import Plan
from upgrade.request import Request

if TYPE_CHECKING:
    from upgrade.dump.gathering import Residence


def main(options: argparse.Namespace) -> int:
    """Print the plan of an upgrade."""
    host = Host()
    found = plan.make(host, request(options), Config.load(host))
    answer(json.dumps(to_json(found, host), indent=2) if options.json else render(found, host))
    return ExitStatus.DONE


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
    )


def to_json(found: Plan, host: Host) -> dict[str, Any]:
    """Return a plan for machines."""
    return {
        "schema_version": SCHEMA_VERSION,
        "ready": True,
        "kernel_from": host.release(),
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
