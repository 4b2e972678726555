# SPDX-License-Identifier: MIT
"""Whose the descriptors are that a :mod:`keeper <upgrade.restore.keeper>` has handed over.

A userfaultfd belongs to the child of a fork that a journal tells of, but neither the FD store nor a journal knows: the
message says which number it had. In the store it keeps its name for good, as a descriptor that is there cannot be
stored under a second one, and between two names it would be nowhere. The symbolic link ``CHILD.orphan`` beside the
journals tells which name that is.

All of this comes before the server reads any message and has a keeper itself. So it can be killed anywhere, and what
is without an owner is always of the last server that has read messages.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from upgrade.restore import fdstore
from upgrade.restore.journal import events_file, kept_messages
from upgrade.restore.keeper import ORPHAN
from upgrade.userfaultfd import UFFD_EVENT_FORK

_LOST = "lost"


def adopt(
    journals: Path, lines: Mapping[str, str], inherited: dict[str, int]
) -> tuple[dict[str, str], list[str]]:
    """Put what was handed over under the names of its owners, and close the rest.

    :param lines: the names of CRIU's connections, by the address that their sockets are bound to
    :param inherited: the descriptors by name; changed
    :returns: the names in the FD store of adopted children, and the children whose descriptor nobody has
    """
    owners = {path.stem: os.readlink(path) for path in journals.glob("*.orphan")}
    free = {}
    for name in [n for n in inherited if n.startswith(f"{ORPHAN}.") and n not in owners.values()]:
        line = lines.get(_address(inherited[name]))
        if line is not None and line not in inherited:
            inherited[line] = inherited.pop(name)
        else:
            free[int(name.rsplit(".", 1)[1])] = name
    for child, number in _missing(journals, inherited):
        if child not in owners:
            owners[child] = free.pop(number, _LOST)
            (journals / f"{child}.orphan").symlink_to(owners[child])
    adopted = {child: name for child, name in owners.items() if name in inherited}
    for child, name in adopted.items():
        inherited[child] = inherited.pop(name)
    for name in free.values():
        fdstore.remove(name)
        os.close(inherited.pop(name))
    return adopted, [child for child, name in owners.items() if name == _LOST]


def _missing(journals: Path, inherited: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the children that nobody knows, with the number of the descriptor that they had."""
    for path in journals.glob("*.events"):
        for slot, message in enumerate(kept_messages(path)):
            child = f"{path.stem}.{slot}"
            if message.event != UFFD_EVENT_FORK or child in inherited:
                continue
            if not events_file(journals, child).exists():
                yield child, message.descriptor


def _address(fd: int) -> str:
    """Return what a connected stream socket is bound to; an empty text for everything else."""
    try:
        with socket.socket(fileno=os.dup(fd)) as line:
            if line.type != socket.SOCK_STREAM or line.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return ""
            return str(line.getsockname())
    except OSError:
        return ""
