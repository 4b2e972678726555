# SPDX-License-Identifier: MIT
"""Wait until messages wait in every queue, then write down who the processes are.

usage: record.py DIRECTORY
"""

import json
import os
import sys
import time
from pathlib import Path

WAIT_SECONDS = 180.0


def main() -> None:
    """Record the processes."""
    here = Path(sys.argv[1])
    sys.path.insert(0, str(here))
    sys.dont_write_bytecode = True
    import ask

    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            found = ask.everybody(here)
            empty = [
                f"{role} {name}"
                for role in found
                for name, size in found[role]["queues"].items()
                if name.endswith("unread") and not size
            ]
            errors = [error for role in found for error in found[role]["errors"]]
            if not empty and not errors:
                break
            why = f"nothing waits in {empty}, errors: {errors}"
        except (OSError, ValueError) as e:
            why = str(e)
        if time.monotonic() > deadline:
            sys.exit(f"streams: {why}: see {here}/*.errors")
        time.sleep(0.2)
    recorded = {role: {name: found[role][name] for name in ("pid", "marker", "kinds")} for role in found}
    with (here / "recorded").open("w") as file:
        json.dump(recorded, file)
        file.flush()
        os.fsync(file.fileno())


main()
