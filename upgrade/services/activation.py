# SPDX-License-Identifier: MIT
"""Sockets that systemd opens for a service (``.socket`` units): the same socket is systemd's and the service's.

At restore systemd opens them first, and hands them to the command that restores; CRIU puts them in the place of the
old ones. It can do so with unix sockets only: it has no name for others (criu/sk-inet.c, ``inet_desc_ops``).
"""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.process import run
from upgrade.services import systemd

FIRST = 3  # sd_listen_fds(3)
KINDS = ("(Stream)", "(SequentialPacket)", "(Datagram)")
KEPT = ".seamless-upgrade"


def of_service(unit: str, triggered_by: Iterable[str]) -> list[str]:
    """Return the socket units of a service.

    :raises Refusal: if one has a socket that cannot be put in the place of the old one
    """
    found = [each for each in triggered_by if each.endswith(".socket")]
    for name in found:
        for line in _listened(name):
            address, _, kind = line.rpartition(" ")
            if not address.startswith("/") or kind not in KINDS:
                raise Refusal(
                    f"listens on {line}, which systemd opened for it ({name}) and would open a second time; only unix "
                    "sockets with a path can be handed over",
                    subject=unit,
                    hint=f"have it open its socket itself (systemctl disable --now {name}), or leave it out",
                )
    return found


def listeners(host: Host, pids: Iterable[int], sockets: Iterable[str]) -> dict[int, str]:
    """Return the sockets that systemd opened for tasks and that they hold: inode, and path."""
    paths = {line.rpartition(" ")[0] for name in sockets for line in _listened(name)}
    if not paths:
        return {}
    from upgrade.check.sockets import ESTABLISHED, unix_sockets  # not for the new kernel's path

    table = unix_sockets(host.path("/proc/self/ns/net"))
    held = inodes(host, pids)
    bound = {i: s.name for i, s in table.items() if s.name in paths and not s.peer and s.state != ESTABLISHED}
    return {inode: name for inode, name in bound.items() if inode in held}


def inodes(host: Host, pids: Iterable[int]) -> dict[int, int]:
    """Return the sockets that tasks hold: inode, and the lowest descriptor it has."""
    held: dict[int, int] = {}
    for pid in pids:
        for name in host.list(f"/proc/{pid}/fd"):
            with suppress(OSError):
                link = os.readlink(host.path(f"/proc/{pid}/fd/{name}"))
                if link.startswith("socket:["):
                    inode = int(link[8:-1])
                    held[inode] = min(held.get(inode, int(name)), int(name))
    return held


def handed_over(environment: Mapping[str, str]) -> Sequence[int]:
    """Return the descriptors that systemd has handed to this process (sd_listen_fds(3))."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return ()
    return range(FIRST, FIRST + int(environment.get("LISTEN_FDS", "0")))


def matching(wanted: Mapping[str, str], given: Iterable[int]) -> dict[str, int]:
    """Return for each old socket, by CRIU's name, a duplicate of the new one.

    :param wanted: inode, and path
    :raises UpgradeError: if there is none
    """
    paths = {_path(number): number for number in given}
    missing = sorted(set(wanted.values()) - paths.keys())
    if missing:
        raise UpgradeError("systemd did not open it", subject=", ".join(missing))
    return {f"socket:[{inode}]": os.dup(paths[path]) for inode, path in wanted.items()}


@contextmanager
def kept(paths: Iterable[str]) -> Iterator[None]:
    """Keep the names of sockets: CRIU removes each before it would bind it (criu/sk-unix.c, ``unlink_sk``)."""
    names = sorted(set(paths))
    for path in names:
        with suppress(FileNotFoundError):
            os.unlink(path + KEPT)
        os.link(path, path + KEPT)
    try:
        yield
    finally:
        for path in names:
            os.rename(path + KEPT, path)


def _path(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as known:
        name = known.getsockname() if known.family == socket.AF_UNIX else ""
        return name if isinstance(name, str) else ""


def _listened(unit: str) -> list[str]:
    """Return what a socket unit listens on, as ``/run/x.sock (Stream)``."""
    command = ["systemctl", "show", "--property=Listen", "--value", "--", unit]
    lines = run(command, timeout=systemd.CALL_S).stdout.splitlines()
    return [line.strip() for line in lines if line.strip()]
