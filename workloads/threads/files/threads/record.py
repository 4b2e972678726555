# SPDX-License-Identifier: MIT
"""Wait until the ring goes round, then write down who its tasks are.

usage: record.py DIRECTORY
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

WAIT_SECONDS = 120.0


def ask() -> tuple[dict[str, dict[str, int | str]], list[list[int]]]:
    """Ask the ring once; return its counters by role, and the descriptor and thread of each client."""
    with socket.create_connection(("127.0.0.1", 7000), timeout=30) as connection:
        connection.sendall(b"record\n")
        with connection.makefile("rb") as stream:
            reply = json.loads(stream.readline())
    return {role: reply[role] for role in ("parent", "left", "right")}, reply["clients"]


def main() -> None:
    """Record the counters and the tasks."""
    here = Path(sys.argv[1])
    sys.path.insert(0, str(here))
    sys.dont_write_bytecode = True
    import tasks

    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            found, clients = ask()
            break
        except (OSError, KeyError, ValueError) as e:
            if time.monotonic() > deadline:
                sys.exit(f"threads: the ring does not go round ({e}): see {here}/errors")
            time.sleep(0.2)
    recorded = {"counters": found, "tasks": [tasks.task(int(found[role]["pid"])) for role in found]}
    parent = recorded["tasks"][0]
    for fd, thread in clients:
        parent["descriptors"].pop(str(fd), None)
        parent["threads"] = [number for number in parent["threads"] if number != thread]
    with (here / "recorded").open("w") as file:
        json.dump(recorded, file)
        file.flush()
        os.fsync(file.fileno())


main()
