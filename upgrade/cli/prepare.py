# SPDX-License-Identifier: MIT
"""``seamless-upgrade prepare``: make this host ready for upgrades."""

import argparse
import json

from upgrade import plan
from upgrade.cli import SCHEMA_VERSION, answer, say
from upgrade.errors import ExitStatus
from upgrade.host import Host
from upgrade.prepare import preparation
from upgrade.prepare.outcome import Outcome


def main(options: argparse.Namespace) -> int:
    """Prepare the host, or with ``--dry-run`` say what would be done."""
    plan.privileged()
    done = preparation.prepare(Host(), options.memory, dry_run=options.dry_run)
    if options.json:
        answer(json.dumps(to_json(done), indent=2))
    else:
        answer("\n".join([*render(done), *_verdict(done)]))
    for warning in done.warnings:
        say(f"warning: {warning}")
    return ExitStatus.DONE


def to_json(done: Outcome) -> dict[str, object]:
    """Return what was done for machines."""
    return {"schema_version": SCHEMA_VERSION, **done.to_json()}


def render(done: Outcome) -> list[str]:
    """Return what was done for people."""
    lines = []
    nodes = done.nodes or ["?"] * len(done.spans)
    for number, (span, node) in enumerate(zip(done.spans, nodes, strict=True)):
        what = "page frames" if number else "metadata"
        lines.append(f"  {span!s:<26} {span.size_bytes >> 20:>8} MiB  node {node}  {what}")
    if done.changed:
        lines += [f"  file     {name}" for name in done.files]
        lines += [f"  command  {' '.join(command)}" for command in done.commands]
        lines += [f"  unit     {name}" for name in done.units]
    return lines


def _verdict(done: Outcome) -> list[str]:
    if not done.changed:
        said = (
            "Nothing to do: the ranges were set by hand"
            if done.by_hand
            else "Nothing to do: prepared already"
        )
    else:
        said = "This would be done" if done.dry_run else "Prepared"
    if done.reboot_needed:
        return [f"{said}; it takes one ordinary reboot for the ranges to be there."]
    return [f"{said}; no reboot is needed."]
