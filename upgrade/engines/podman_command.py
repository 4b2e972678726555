# SPDX-License-Identifier: MIT
"""podman's commands that start something: conmon inherits their standard streams, and stays."""

import os
from collections.abc import Mapping
from pathlib import Path

from upgrade.engines import bus
from upgrade.engines.base import Images
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.process import run_detaching

COMMAND_S = 120


def call(
    host: Host, words: list[str], log: Path, timeout_s: float, environment: Mapping[str, str] | None = None
) -> None:
    """Run podman once the bus is there; nobody could wait for the end of a pipe, so what it says goes to a file.

    :raises UpgradeError: with what it said last
    """
    bus.wait(host)
    command = ["sh", "-c", 'log=$1 && shift && exec "$@" >"$log" 2>&1', "sh", os.fspath(log), "podman"]
    status = run_detaching([*command, *words], timeout=timeout_s, env=environment)
    if status != 0:
        lines = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        raise UpgradeError(" | ".join(lines) or f"exit status {status}", subject="podman")


def restore(host: Host, identity: str, images: Images, *, in_service: bool = False) -> None:
    """Have podman restore a container; its tasks run afterwards.

    :param in_service: conmon stays where we are, as podman has it in a service of systemd
    Without ``--keep`` it removes the images that it finds in the container's directory, and its log.
    """
    words = ["container", "restore", "--tcp-established", "--file-locks", identity]
    environment = {"INVOCATION_ID": os.environ.get("INVOCATION_ID") or "restore"} if in_service else {}
    call(host, words, images.work / "podman.log", images.timeout_s or COMMAND_S, environment)
