# SPDX-License-Identifier: MIT
"""CRIU's connection to the page server: one for each container that is restored on demand.

Protocol (criu/uffd.c of CRIU 4.2): a stream; of each task its process id as int32, negative if it is a zombie, and
otherwise one byte with the userfaultfd; at last, once per restore, RESTORE_FINISHED.
"""

import array
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from upgrade.restore import fdstore
from upgrade.restore.ondemand import SOCKET
from upgrade.restore.served import Container

RESTORE_FINISHED = 0x52535446

Welcome = Callable[[Container, int, list[int]], bool]
"""Called with a task's process id and its userfaultfd; takes that out of the list if it keeps it. False: end it."""


class CriuLine:
    """The connection; before there is one, the socket that waits for it. The FD store has both."""

    def __init__(
        self,
        container: Container,
        inherited: dict[str, int],
        welcome: Welcome,
        restored: Callable[[Container], None],
    ) -> None:
        """Go on with what an earlier server left, which is taken out of ``inherited``, or listen."""
        self.container = container
        self.welcome = welcome
        self.restored = restored
        self.line: socket.socket | None = None
        self.listener: socket.socket | None = None
        line = inherited.pop(f"criu.{container.number}", None)
        listener = inherited.pop(f"listen.{container.number}", None)
        if line is not None:
            self.line = socket.socket(fileno=line)
            if listener is not None:
                os.close(listener)
                fdstore.remove(f"listen.{container.number}")
        elif listener is not None:
            self.listener = socket.socket(fileno=listener)
        else:
            self.listener = self._listen()

    def fileno(self) -> int | None:
        """Return what to wait for; None if nothing is to be heard any more."""
        if self.line is not None:
            return None if self.container.restored else self.line.fileno()
        return self.listener.fileno() if self.listener is not None else None

    def hear(self) -> None:
        """Take what has come."""
        if self.line is not None:
            self._hear(self.line)
        elif self.listener is not None:
            self._accept(self.listener)

    def _listen(self) -> socket.socket:
        path = self.container.work / SOCKET
        fresh = Path(address(self.container))
        fresh.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(fresh))
        listener.listen()
        fdstore.store(f"listen.{self.container.number}", listener.fileno())
        fresh.rename(path)  # whoever sees it can connect
        return listener

    def _accept(self, listener: socket.socket) -> None:
        line, _ = listener.accept()
        fdstore.store(f"criu.{self.container.number}", line.fileno())
        self.line = line
        listener.close()
        self.listener = None
        fdstore.remove(f"listen.{self.container.number}")

    def _hear(self, line: socket.socket) -> None:
        """Take the next message of CRIU; it is only peeked at until systemd has the descriptor."""
        container = self.container
        data, fds = _receive(line, socket.MSG_PEEK)
        try:
            if not data:
                container.error = container.error or "CRIU ended before the restore was finished"
                self.restored(container)
                return
            if len(data) < 4:
                return
            (pid,) = struct.unpack("<i", data[:4])
            if pid == RESTORE_FINISHED:  # stays in the socket: a server that is started anew sees it, too
                self.restored(container)
            elif pid < 0:
                line.recv(4)
            elif fds:
                if not self.welcome(container, pid, fds):
                    line.shutdown(socket.SHUT_RDWR)  # CRIU fails, and ends the tasks
                for fd in _receive(line, 0)[1]:
                    os.close(fd)
        finally:
            for fd in fds:
                os.close(fd)


def address(container: Container) -> str:
    """Return what the socket for a container's connection was bound to; it is renamed later."""
    return os.fspath(container.work / "lazy-pages.new")


def _receive(line: socket.socket, flags: int) -> tuple[bytes, list[int]]:
    """Receive up to five bytes and a descriptor; ``socket.recv_fds`` ignores its flags."""
    try:
        data, ancillary, _, _ = line.recvmsg(5, socket.CMSG_SPACE(4), flags | socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
