# SPDX-License-Identifier: MIT
"""What the unit runs: the transaction itself (``seamless-upgrade.service``)."""

import argparse
import logging
import signal
import traceback
from collections.abc import Sequence
from types import FrameType

from upgrade import paths
from upgrade.cli import outcome
from upgrade.clock import Clock
from upgrade.config import Config
from upgrade.errors import ExitStatus, Interrupted, UpgradeError
from upgrade.events import Events
from upgrade.host import Host
from upgrade.request import Request
from upgrade.transaction import Transaction
from upgrade.undo import Undo, uninterrupted

log = logging.getLogger(__name__)


def main(_options: argparse.Namespace) -> int:
    """Carry the request out; returns only if the new kernel was not entered."""
    host = Host()
    events = Events(paths.EVENTS, Clock())
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    undo = Undo(host, paths.UNDO)
    try:
        request = Request.load(paths.REQUEST)
        paths.REQUEST.unlink()  # carried out once, whatever starts the unit again
        Transaction(host, request, Config.load(host), events).run()
    except UpgradeError as e:
        return _end(e, undo.left())
    except Exception as e:
        log.error("%s", traceback.format_exc())
        return _end(
            UpgradeError(f"internal error: {type(e).__name__}: {e}", hint=f"journalctl -u {paths.RUN_UNIT}"),
            undo.left(),
        )
    return _end(UpgradeError("ended without a jump"), undo.left())


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    uninterrupted()
    raise Interrupted("aborted; the containers run on")


def _end(error: UpgradeError, left: Sequence[str]) -> int:
    """Tell the command that follows; it prints this.

    :param left: what could not be undone; the unit tries it once more
    """
    if left:
        error.message += f"; not undone at the first try: {', '.join(left)}"
        error.hint = f"{error.hint}; " if error.hint else ""
        error.hint += "seamless-upgrade recover says whether it is undone by now"
    outcome.write(error)
    log.error("%s", error)
    return int(error.status or ExitStatus.FAILED)
