# SPDX-License-Identifier: MIT
"""Runs in a guest under the settings of the page server's unit: dies again and again with something that nobody has.

Writes what each start was given: the names in systemd's FD store, and the number that the descriptor had.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, "/usr/local/lib/seamless-upgrade")

from upgrade import userfaultfd
from upgrade.restore import fdstore, keeper

OUTPUT = Path("/run/orphaned.json")
DEATHS = int(sys.argv[1])

hand_over = keeper._hand_over


def late(prefix: str) -> None:
    """Take some time: systemd has to wait."""
    time.sleep(0.5)
    hand_over(prefix)


told = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else []
found = fdstore.inherited()
for name in found:
    if name.startswith(f"{keeper.ORPHAN}."):
        fdstore.remove(name)
        os.close(found[name])
if told:
    told[-1]["names"] = sorted(found)
else:
    fd = userfaultfd.create()
    userfaultfd.api(fd, 0)
    fdstore.store("task", fd)
if len(told) < DEATHS:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if len(told) % 2:
        keeper._hand_over = late
    keeper.Keeper()
    told.append({"fd": userfaultfd.create()})
    OUTPUT.write_text(json.dumps(told))
    os.kill(os.getpid(), signal.SIGKILL)
OUTPUT.write_text(json.dumps(told))
