# SPDX-License-Identifier: MIT
"""The baselines' way back in: ``python3 -m upgrade.bench.guest.back images|cold``, called by a unit."""

import sys

from upgrade.bench.guest import pending, tree
from upgrade.bench.guest.leave import IMAGES
from upgrade.bench.guest.pending import Pending
from upgrade.clock import Clock
from upgrade.process import run, run_detaching

RESTORE_SECONDS = 1800.0


def main(kind: str) -> None:
    """Bring the containers back."""
    clock = Clock()
    begun = clock.tsc()
    state = Pending.load(pending.PLACES[kind])
    pending.PLACES[kind].unlink()  # whatever happens, it is tried once
    state.stamps["back"] = begun
    try:
        if kind == "images":
            restore(state.containers)
        else:
            tree.start(state.containers, state.mib)
            tree.wait(state.containers)
    finally:
        state.stamps["done"] = clock.tsc()
        state.save(pending.DONE)


def restore(count: int) -> None:
    """Restore every container, one after the other."""
    for number in range(count):
        directory = IMAGES / str(number)
        command = ["criu", "restore", "--restore-detached", "--images-dir", str(directory)]
        command += ["--log-file", "restore.log", "-v1", "--tcp-close", "--ext-unix-sk", "--manage-cgroups"]
        # Detached tasks keep nothing of ours: their standard streams are /dev/null as they were.
        if run_detaching(command, timeout=RESTORE_SECONDS) != 0:
            log = directory / "restore.log"
            why = run(["tail", "-n", "5", log], check=False).stdout
            raise OSError(f"container {number} was not restored: {why}")


if __name__ == "__main__":
    main(sys.argv[1])
