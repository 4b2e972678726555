# SPDX-License-Identifier: MIT
"""``seamless-upgrade run``: hand the upgrade over to its own unit and follow it.

The run must survive the loss of the terminal that it was typed on.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from upgrade import paths, plan
from upgrade.check import catalog, runner, text
from upgrade.check.model import Check, Status
from upgrade.check.situation import Situation
from upgrade.cli import SCHEMA_VERSION, answer, check, outcome, say, unit
from upgrade.config import Config
from upgrade.errors import ExitStatus, Interrupted, Refusal, UpgradeError, UsageError
from upgrade.host import Host
from upgrade.process import run

POLL_S = 0.1
UNIT_START_S = 30


def main(options: argparse.Namespace) -> int:
    """Upgrade; returns only if the new kernel was not entered."""
    if options.dry_run or options.list:
        return check.main(options)
    if options.probe:
        raise UsageError("only check does that", subject="--probe", hint="seamless-upgrade check --probe")
    host = Host()
    request = check.request(options)
    if not (request.containers or request.cgroups or request.units or request.all):
        raise plan.nothing_to_preserve()
    plan.privileged()
    refuse_second()
    checks = runner.chosen(catalog.checks(), options.only, options.skip)  # a typo is told now
    if not options.yes:
        _ask(Situation(host, request, Config.load(host)), [check for check in checks if check.in_run])
    paths.make_runtime()
    for left in (paths.OUTCOME, paths.EVENTS):
        left.unlink(missing_ok=True)
    request.save(paths.REQUEST)
    with _interruptible():
        run(["systemctl", "start", "--no-block", paths.RUN_UNIT])
        try:
            ended = _follow()
        except Interrupted:
            say("aborting")
            run(["systemctl", "stop", paths.RUN_UNIT], timeout=300)
            ended = _follow()
    return _finish(ended, as_json=options.json)


def refuse_second() -> None:
    """Refuse if an upgrade runs already."""
    if unit.is_busy():
        raise Refusal(
            "an upgrade runs already",
            subject=paths.RUN_UNIT,
            hint="seamless-upgrade status --wait, or seamless-upgrade abort",
        )


def _ask(situation: Situation, checks: Iterable[Check]) -> None:
    """Show what was found, and the plan, and ask; what the checks refuse is no question."""
    found = plan.make(situation.host, situation.request, situation.config, lambda: situation.comparison)
    if not sys.stdin.isatty():
        raise UsageError("nobody there to ask", hint="add --yes to upgrade without a question")
    results = list(runner.run(checks, situation))
    runner.refuse(results)
    say(text.render([each for each in results if each.finding.status is not Status.PASS]))
    say(check.render(found, situation.host))
    print("Upgrade now? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Interrupted("nothing was touched")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C into an abort of the run.

    A hang-up or SIGTERM only ends this command: stopping the host's services may stop the one it was typed in.
    """

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow() -> dict[str, Any]:
    """Print the run's events until it has ended; return its outcome.

    The run tells its outcome before its unit looks for what it has left behind (``ExecStopPost=``): until that has
    ended nothing may begin anew.
    """
    seen = 0
    started = time.monotonic()
    while True:
        ended = outcome.read()
        lines = paths.EVENTS.read_text().splitlines() if paths.EVENTS.exists() else []
        for line in lines[seen:]:
            say(json.loads(line)["text"])
        seen = len(lines)
        late = not lines and time.monotonic() - started > UNIT_START_S
        if (late or ended is not None) and not unit.is_busy():
            if (ended := outcome.read()) is not None:  # it may have been told just now
                return ended
            raise UpgradeError(
                "did not start", subject=paths.RUN_UNIT, hint=f"journalctl -u {paths.RUN_UNIT}"
            )
        time.sleep(POLL_S)


def _finish(ended: dict[str, Any], *, as_json: bool) -> int:
    error = ended["error"]
    if as_json:
        answer(json.dumps({"schema_version": SCHEMA_VERSION, "changed": False, **ended}, indent=2))
    where = f"{error['subject']}: " if error["subject"] else ""
    say(f"seamless-upgrade: {where}{error['message']}")
    if error["hint"]:
        say(f"  remedy: {error['hint']}")
    return int(error["exit_status"] or ExitStatus.FAILED)
