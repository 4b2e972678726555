# SPDX-License-Identifier: MIT
"""``seamless-upgrade frames``: called by a unit early at boot, before anything that runs containers."""

import argparse

from memfs.hotplug import NotOnline
from memfs.namespace import NamespaceStuck
from memfs.store import ForeignData
from upgrade import paths, ranges
from upgrade.cli import say
from upgrade.errors import ExitStatus, Refusal, UpgradeError
from upgrade.host import Host
from upgrade.kexec.cmdline import session_of


def main(_options: argparse.Namespace) -> int:
    """Give every range for frames to the allocator."""
    host = Host()
    _refuse_unrestored(host)
    status = ExitStatus.DONE
    for span in ranges.for_frames(host):
        try:
            online = ranges.bring_online(host, span)
        except (NotOnline, NamespaceStuck, ForeignData, UpgradeError, OSError) as e:
            say(f"seamless-upgrade: {span}: {e}")
            status = ExitStatus.FAILED
        else:
            say(f"{span}: {sum(part.size_bytes for part in online) >> 20} MiB online")
    return status


def _refuse_unrestored(host: Host) -> None:
    """Refuse while the ranges may still hold the memory of containers."""
    session = session_of(host.command_line())
    if session is not None and paths.PLAN.exists():
        raise Refusal(
            "has not been restored to its end: the ranges may hold the memory of its containers",
            subject=session,
            hint=f"journalctl -u {paths.RESTORE_UNIT} says why; if nobody needs them any more: rm {paths.PLAN}",
        )
