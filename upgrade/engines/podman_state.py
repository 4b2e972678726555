# SPDX-License-Identifier: MIT
"""podman's own record of a container's state, which outlives the kernel.

podman's first call in a boot notes that what ran has exited, and removes it if it was started with ``--rm`` (podman
5.4, libpod/runtime.go, ``refresh``). Not what had not been started yet; ``podman container restore`` takes that, too.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from upgrade.host import Host

if TYPE_CHECKING:
    import sqlite3

# Below podman's root directory (libpod/sqlite_state.go)
DATABASE = "db.sql"
# There once podman has seen this boot
ALIVE = "/run/libpod/alive"
# libpod/define/containerstate.go
CONFIGURED = 1
RUNNING = 3
BUSY_S = 20.0


def database(inspected: Mapping[str, Any]) -> str:
    """Return where podman's database is: its containers have their directories in ``ROOT/DRIVER-containers``."""
    return os.path.normpath(f"{inspected['StaticDir']}/../../../{DATABASE}")


def runs(host: Host, file: str, identity: str) -> bool:
    """Tell whether the database says that a container runs; False, too, if it is not as we know it."""
    import sqlite3  # not for the path of other containers

    try:
        with closing(_open(host, file)) as opened:
            return _read(opened, identity).get("state") == RUNNING
    except (sqlite3.Error, ValueError):
        return False


def keep(host: Host, file: str, identities: Iterable[str]) -> None:
    """Have podman keep containers that end with their last process, before its first call in this boot."""
    if host.exists(ALIVE):
        return
    with closing(_open(host, file)) as opened, opened:
        for identity in identities:
            state = _read(opened, identity)
            if state.get("state") == RUNNING:
                text = json.dumps({**state, "state": CONFIGURED})
                opened.execute("UPDATE ContainerState SET JSON = ? WHERE ID = ?", (text, identity))


def _open(host: Host, file: str) -> "sqlite3.Connection":
    import sqlite3

    return sqlite3.connect(f"{host.path(file).as_uri()}?mode=rw", uri=True, timeout=BUSY_S)


def _read(opened: "sqlite3.Connection", identity: str) -> dict[str, Any]:
    row = opened.execute("SELECT JSON FROM ContainerState WHERE ID = ?", (identity,)).fetchone()
    return dict(json.loads(row[0])) if row is not None else {}
