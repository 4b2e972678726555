# SPDX-License-Identifier: MIT
"""``seamless-upgrade rehearse``: the whole thing in a virtual machine."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from upgrade.cli import SCHEMA_VERSION, answer, say
from upgrade.errors import ExitStatus, UpgradeError, UsageError
from upgrade.rehearse.rehearsal import Options, rehearse
from upgrade.rehearse.seed import REPOSITORY
from upgrade.report import text
from upgrade.report.model import Report


def main(options: argparse.Namespace) -> int:
    """Rehearse, and print the report, what the workloads verified and what a client outside saw."""
    if not (REPOSITORY / "scripts/install").exists():
        raise UsageError(
            "works from a checkout only: the machine is given this program's own source",
            subject="rehearse",
            hint="clone the repository and run scripts/demo or python3 -m upgrade rehearse there",
        )
    try:
        result = _rehearse(options)
    except UpgradeError as e:
        if options.json not in (None, "-"):
            _write(
                {"schema_version": SCHEMA_VERSION, "outcome": "failed", "error": e.to_json()}, options.json
            )
        raise
    if options.json:
        _write(result, options.json)
    if options.json != "-":
        answer("\n".join(render(result)))
    return ExitStatus.DONE if result["outcome"] == "passed" else ExitStatus.FAILED


def _rehearse(options: argparse.Namespace) -> dict[str, Any]:
    return rehearse(
        Options(
            kernel_from=options.kernel_from,
            kernel_to=options.kernel_to,
            workloads=tuple(Path(directory) for directory in options.workload),
            memory_mib=options.memory,
            frames_mib=options.frames,
            append=options.append,
            keep=options.keep,
            rounds=options.rounds,
        ),
        say,
    )


def _write(result: Mapping[str, Any], where: str) -> None:
    document = json.dumps(result, indent=2)
    if where == "-":
        answer(document)
    else:
        Path(where).write_text(document + "\n")


def render(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a result."""
    if result["report"]:
        yield text.render(Report.from_json(result["report"]), colour=sys.stdout.isatty())
    for number, done in enumerate(result["rounds"] if len(result["rounds"]) > 1 else (), start=1):
        report = done.get("report") or {}
        yield (
            f"round {number}: {done['kernel_from']} -> {done['kernel_to']}: {report.get('outcome', 'failed')}, "
            f"downtime {report.get('downtime_seconds', float('nan')):.2f} s"
        )
    yield "Rehearsal"
    for name, seen in result["workloads"].items():
        yield from (f"  {line}" for line in _verdicts(name, seen, result["report"]))
    if result["error"]:
        yield f"  error: {result['error']['message']}"
    yield f"  {result['accelerator']}, {result['seconds']:.0f} s in all; console: {result['console']}"
    yield f"  {result['outcome']}"


def _verdicts(name: str, seen: Mapping[str, Any], report: Mapping[str, Any] | None) -> Iterator[str]:
    verified, probed = seen["verify"], seen["probe"]
    if verified is None:
        yield f"{name}: not verified"
    else:
        lines = verified["output"].strip().splitlines()
        bad = [line for line in lines if not line.startswith(("ok", "note"))]
        good = sum(line.startswith("ok") for line in lines)
        yield f"{name}: {'intact' if verified['exit_status'] == 0 else 'DAMAGED'}, {good} things verified"
        yield from (f"  {line}" for line in bad)
    if probed is not None:
        yield f"{name}: client outside: {_probe(probed, _downtime(report, seen['preserved']))}"


def _downtime(report: Mapping[str, Any] | None, names: Sequence[str]) -> float | None:
    """Return how long the tool itself says that a workload was away."""
    found = [c["downtime_seconds"] for c in (report or {}).get("containers", ()) if c["name"] in names]
    return max((seconds for seconds in found if seconds is not None), default=None)


def _probe(probed: Mapping[str, Any], downtime: float | None) -> str:
    try:
        found = json.loads(probed["output"].strip().splitlines()[-1])
        gap, replies = found["largest_gap_seconds"], found["replies"]
    except (ValueError, KeyError, IndexError):
        return f"exit status {probed['exit_status']}: {probed['output'].strip()[-300:]}"
    own = "" if downtime is None else f" (the tool measured {downtime:.2f} s)"
    state = "one connection all the time" if probed["exit_status"] == 0 else "FAILED"
    return f"{state}, {replies} replies, largest gap {gap:.2f} s{own}"
