# SPDX-License-Identifier: MIT
"""Having systemd start a service whose start is its restore."""

import time
from collections.abc import Mapping
from threading import Thread
from typing import Any

from upgrade.engines.base import Images, Unlock
from upgrade.errors import UpgradeError
from upgrade.services import systemd
from upgrade.services.line import Line, Listener

POLL_S = 0.05
RESTORE_S = 300.0
# What systemd itself may take before and after
SYSTEMD_S = 60.0


class Start(Thread):
    """``systemctl start``, beside the restore that it leads to."""

    def __init__(self, name: str, timeout_s: float) -> None:
        super().__init__(name=f"start {name}", daemon=True)
        self.unit = name
        self.timeout_s = timeout_s
        self.error: UpgradeError | None = None

    def run(self) -> None:
        """Start the unit."""
        try:
            systemd.start_at_once(self.unit, self.timeout_s)
        except UpgradeError as e:
            self.error = e


def restore(
    name: str,
    images: Images,
    data: Mapping[str, Any],
    streams: Mapping[str, int],
    unlock: Unlock,
    podman: Mapping[str, str] | None = None,
) -> int:
    """Have a service restored by its start; return its main process when systemd has taken it over.

    :param streams: to the journal, that systemd hands over (``journal.streams``)
    :param podman: where it is podman that restores, and its conmon the main process: ``id`` and ``pid_file``
    :raises UpgradeError: if it could not be restored, or systemd does not take it
    """
    limit_s = images.timeout_s or RESTORE_S
    start = Start(name, limit_s + SYSTEMD_S)
    with Listener(name) as listener:
        start.start()
        with _called(listener, start) as line:
            line.send(
                directory=str(images.directory),
                work=str(images.work),
                timeout_s=images.timeout_s,
                lazy=images.lazy,
                streams=streams,
                shell_job=not data["leads_session"],
                podman=podman,
            )
            pid = _converse(line, unlock, limit_s)
    start.join()
    if start.error is not None:
        raise UpgradeError(f"systemd does not take it over: {start.error}", subject=name)
    return pid


def _called(listener: Listener, start: Start) -> Line:
    deadline = time.monotonic() + SYSTEMD_S
    while time.monotonic() < deadline:
        line = listener.accept(POLL_S)
        if line is not None:
            return line
        if not start.is_alive():
            raise UpgradeError(
                f"systemd did not start its restore: {start.error or 'it says that it runs'}",
                subject=start.unit,
            )
    raise UpgradeError(f"systemd did not start its restore within {SYSTEMD_S:.0f} s", subject=start.unit)


def _converse(line: Line, unlock: Unlock, limit_s: float) -> int:
    while True:
        message = line.receive(limit_s + SYSTEMD_S)
        match message["event"]:
            case "unlock":
                unlock()
                line.send(event="go")
            case "restored":
                return int(message["pid"])
            case _:
                raise UpgradeError(message.get("error", "failed"))
