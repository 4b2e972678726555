# SPDX-License-Identifier: MIT
"""The system's message bus: who has systemd make cgroups needs it, and it comes late in a boot.

A socket that listens is enough: a bus that is still to be started answers as soon as it runs.
"""

import os
import socket
import time

from upgrade.errors import UpgradeError
from upgrade.host import Host

SOCKET = "/run/dbus/system_bus_socket"
TIMEOUT_S = 180.0
POLL_S = 0.02


def wait(host: Host, timeout_s: float = TIMEOUT_S) -> None:
    """Return when the bus can be talked to.

    :raises UpgradeError: if it does not listen within ``timeout_s``
    """
    address = os.fspath(host.path(SOCKET))
    deadline = time.monotonic() + timeout_s
    while not _listens(address):
        if time.monotonic() > deadline:
            raise UpgradeError(
                f"does not listen within {timeout_s:.0f} s",
                subject=SOCKET,
                hint="systemctl status dbus.socket; it needs dbus or dbus-broker",
            )
        time.sleep(POLL_S)


def _listens(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
        try:
            line.connect(address)
        except OSError:
            return False
    return True
