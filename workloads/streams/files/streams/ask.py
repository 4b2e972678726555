# SPDX-License-Identifier: MIT
"""Ask the processes what they have counted."""

import json
import socket
from pathlib import Path
from typing import Any

ROLES = ("parent", "child", "peer")
PATIENCE_S = 60


def ask(directory: Path, role: str, command: str = "report") -> dict[str, Any]:
    """Return the report of a process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(directory / f"{role}.control"))
        connection.sendall(f"{command}\n".encode())
        with connection.makefile("rb") as stream:
            found: dict[str, Any] = json.loads(stream.readline())
    return found


def everybody(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the reports of all."""
    return {role: ask(directory, role) for role in ROLES}
