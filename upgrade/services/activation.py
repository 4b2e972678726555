# SPDX-License-Identifier: MIT
"""Sockets that systemd opens for a service (``.socket`` units): the same socket is systemd's and the service's.

They cannot be preserved. CRIU has no name for a TCP socket to put another in its place (criu/sk-inet.c,
``inet_desc_ops``). With unix sockets it can, and the first upgrade of such a service works; in the second one CRIU 4.1
hung in the restore.
"""

from collections.abc import Iterable

from upgrade.errors import Refusal


def refuse(unit: str, triggered_by: Iterable[str]) -> None:
    """Refuse a service that has a socket unit."""
    for name in triggered_by:
        if name.endswith(".socket"):
            raise Refusal(
                f"listens on sockets that systemd opened for it ({name}), which CRIU cannot put back",
                subject=unit,
                hint=f"have it open its socket itself (systemctl disable --now {name}), or leave it out",
            )
