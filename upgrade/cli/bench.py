# SPDX-License-Identifier: MIT
"""``seamless-upgrade bench``: compare ways to replace a kernel, in virtual machines."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from upgrade.bench import matrix
from upgrade.bench.matrix import Matrix
from upgrade.bench.model import Result
from upgrade.cli import answer, say
from upgrade.errors import ExitStatus, UsageError
from upgrade.rehearse.seed import REPOSITORY

# What the host keeps of its memory for itself and for the page cache of the images.
HOST_MIB = 2048


def main(options: argparse.Namespace) -> int:
    """Measure, or read what was measured, and write table and page."""
    if options.render:
        return _finish(_load(Path(options.render)), options)
    if not (REPOSITORY / "scripts/install").exists():
        raise UsageError(
            "works from a checkout only: the machine is given this program's own source",
            subject="bench",
            hint="clone the repository and run scripts/bench there",
        )
    from upgrade.bench.runner import Options, bench

    target = options.kernel_to or options.kernel_from
    output = Path(options.output).with_suffix(".json")
    wanted = Options(
        options.kernel_from, target, chosen(options), output, options.clock, resume=options.resume
    )
    return _finish(bench(wanted, say), options)


def chosen(options: argparse.Namespace) -> Matrix:
    """Return the matrix that the options mean."""
    found = matrix.quick() if options.quick else Matrix()
    final = replace(
        found,
        memory_mib=numbers(options.memory, "--memory") if options.memory else found.memory_mib,
        containers=numbers(options.containers, "--containers") if options.containers else found.containers,
        rounds=found.rounds if options.rounds is None else options.rounds,
        modes=tuple(options.modes.split(",")) if options.modes else found.modes,
        most_mib=matrix.host_mib() - HOST_MIB,
    )
    if not final.rows():
        raise UsageError(
            "no row fits into this machine", subject="--memory", hint="smaller containers, or fewer of them"
        )
    return final


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Return a list of numbers that are separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{text!r} is no list of numbers", subject=option, hint="for example 64,512"
        ) from None


def _load(file: Path) -> Result:
    try:
        return Result.load(file)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UsageError(f"is no result of a benchmark: {e}", subject=str(file)) from e


def _finish(result: Result, options: argparse.Namespace) -> int:
    from upgrade.bench import page, table

    html = Path(options.output).with_suffix(".html")
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(page.render(result))
    if options.json:
        answer(json.dumps(result.to_json(), indent=2))
    else:
        answer(table.render(result))
    say(f"written: {html}")
    return ExitStatus.DONE if result.good else ExitStatus.FAILED
