# SPDX-License-Identifier: MIT
"""``seamless-upgrade restore-unit NAME``: what systemd starts in place of a service that was preserved.

When it ends systemd reads the PID file, and the old main process is that of the service again.
"""

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upgrade import paths
from upgrade.engines import tree
from upgrade.engines.base import Images
from upgrade.errors import ExitStatus, UpgradeError
from upgrade.host import Host
from upgrade.process import run
from upgrade.services import dropin, systemd
from upgrade.services.line import Line

OUTPUTS = (1, 2)
UNLOCK_S = 60.0


def main(name: str) -> int:
    """Restore what the restore process says."""
    try:
        line = Line.call(name)
    except OSError:
        return _start_instead(name)
    with line:
        try:
            _restore(name, line, line.receive(UNLOCK_S))
        except Exception as e:
            print(f"seamless-upgrade: {name} cannot be restored: {e}", file=sys.stderr, flush=True)
            line.send(event="failed", error=str(e))
            return ExitStatus.FAILED
    return ExitStatus.DONE


def _restore(name: str, line: Line, job: Mapping[str, Any]) -> None:
    images = Images(Path(job["directory"]), Path(job["work"]), job["timeout_s"], job["lazy"])

    def unlock() -> None:
        line.send(event="unlock")
        line.receive(UNLOCK_S)

    if job["podman"] is not None:
        from upgrade.engines import podman_command

        podman_command.restore(Host(), job["podman"]["id"], images, in_service=True)
        unlock()
        pid = int(Path(job["podman"]["pid_file"]).read_text())
    else:
        given = streams(job["streams"])
        pid = tree.restore(Host(), images, unlock, inherited=given, shell_job=job["shell_job"])
    (paths.RUNTIME / f"{name}.pid").write_text(f"{pid}\n")
    line.send(event="restored", pid=pid)


def streams(wanted: Mapping[str, int]) -> dict[str, int]:
    """Return for each stream to the journal, by CRIU's name, a new one: what systemd opened for us.

    :param wanted: inode, and the descriptor that the service had it at
    :raises UpgradeError: if systemd did not open one
    """
    ours = [number for number in OUTPUTS if _is_socket(number)]
    if wanted and not ours:
        raise UpgradeError("systemd opened no stream to the journal", subject="standard output")
    return {
        f"socket:[{inode}]": os.dup(number if number in ours else ours[0]) for inode, number in wanted.items()
    }


def _is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False


def _start_instead(name: str) -> int:
    """Have the service started as ever: nobody restores it, or it has been restored before."""
    print(f"seamless-upgrade: nobody restores {name}; it is started", file=sys.stderr, flush=True)
    dropin.remove(Host(), name)
    systemd.reload()
    run(["systemctl", "restart", "--no-block", "--", name], check=False)
    return ExitStatus.FAILED
