# SPDX-License-Identifier: MIT
"""The command. The only package that ends the process.

Result on standard output, narration on standard error; ``--json`` everywhere, on failure too.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from upgrade.errors import ExitStatus, UpgradeError

if TYPE_CHECKING:
    import argparse

SCHEMA_VERSION = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["restore"]:  # the new kernel: nothing but what is needed is imported
        from upgrade.restore.main import main as restore

        return int(restore())
    if words == ["pages"]:  # its start is downtime, too
        from upgrade import paths
        from upgrade.restore.pageserver import main as pages

        return int(pages(paths.PAGES))
    if words[:1] == ["restore-unit"] and len(words) == 2:  # started by systemd in place of a service
        from upgrade.services.command import main as restore_unit

        return int(restore_unit(words[1]))
    from upgrade.cli.parser import parse

    try:
        return _run(parse(words))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitStatus.FAILED)


def _run(options: "argparse.Namespace") -> int:
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.INFO, format="%(message)s", stream=sys.stderr
    )
    try:
        return int(options.function(options))
    except UpgradeError as e:
        return fail(e, as_json=options.json in (True, "-"))
    except KeyboardInterrupt:
        return fail(
            UpgradeError("interrupted", status=ExitStatus.INTERRUPTED), as_json=options.json in (True, "-")
        )
    except BrokenPipeError:
        raise
    except OSError as e:
        return fail(UpgradeError(str(e)), as_json=options.json in (True, "-"))


def fail(error: UpgradeError, *, as_json: bool) -> int:
    """Say what went wrong and return the exit status that belongs to it."""
    if as_json:
        answer(json.dumps({"schema_version": SCHEMA_VERSION, "error": error.to_json()}, indent=2))
    say(f"seamless-upgrade: {error}")
    if error.hint:
        say(f"  remedy: {error.hint}")
    return int(error.status)


def answer(text: str) -> None:
    """Print a result."""
    print(text, flush=True)


def say(text: str) -> None:
    """Narrate."""
    print(text, file=sys.stderr, flush=True)


def colour() -> bool:
    """Tell whether standard output is a terminal that takes colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def entry_point() -> None:
    """Be ``seamless-upgrade``."""
    sys.exit(main())
