# SPDX-License-Identifier: MIT
"""``seamless-upgrade frames``: called by a unit early at boot, before anything that runs containers."""

import argparse

from memfs.hotplug import NotOnline
from memfs.namespace import NamespaceStuck
from memfs.store import ForeignData
from upgrade import ranges
from upgrade.cli import say
from upgrade.errors import ExitStatus
from upgrade.host import Host


def main(_options: argparse.Namespace) -> int:
    """Give every range for frames to the allocator."""
    host = Host()
    status = ExitStatus.DONE
    for span in ranges.for_frames(host):
        try:
            online = ranges.bring_online(host, span)
        except (NotOnline, NamespaceStuck, ForeignData, OSError) as e:
            say(f"seamless-upgrade: {span}: {e}")
            status = ExitStatus.FAILED
        else:
            say(f"{span}: {sum(part.size_bytes for part in online) >> 20} MiB online")
    return status
