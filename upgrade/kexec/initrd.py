# SPDX-License-Identifier: MIT
"""One more segment for the initramfs: the first userspace of the new kernel.

It raises the PID floor before anything else runs, so that every preserved host PID is still free, marks the moment
in the kernel's log, and hands over to the distribution's own ``/init``. The kernel takes any number of concatenated
cpio archives (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

import stat
from dataclasses import dataclass

from upgrade.kexec.cmdline import RDINIT

FIRST_USERSPACE = "seamless-upgrade: first userspace"
_KMSG = "seamless-upgrade-kmsg"
# Documentation/admin-guide/devices.txt: 11 = /dev/kmsg
_KMSG_DEVICE = (1, 11)

_INIT = """#!/bin/sh
echo '{mark}' > /{kmsg}
mount -t proc proc /proc
echo {pid_max} > /proc/sys/kernel/pid_max
echo {last_pid} > /proc/sys/kernel/ns_last_pid
umount /proc
exec {init} "$@"
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or device of a cpio archive."""

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def segment(last_pid: int, pid_max: int, init: str) -> bytes:
    """Return the archive; new processes get PIDs above ``last_pid``."""
    script = _INIT.format(mark=FIRST_USERSPACE, kmsg=_KMSG, pid_max=pid_max, last_pid=last_pid, init=init)
    return archive(
        [
            Entry("proc", stat.S_IFDIR | 0o555),
            Entry(_KMSG, stat.S_IFCHR | 0o600, device=_KMSG_DEVICE),
            Entry(RDINIT.lstrip("/"), stat.S_IFREG | 0o755, script.encode()),
        ]
    )


def append(initrd: bytes, extra: bytes) -> bytes:
    """Return both archives as one; segments begin at multiples of four bytes."""
    return _padded(initrd) + extra


def archive(entries: list[Entry]) -> bytes:
    """Return a cpio archive in the ``newc`` format, the same bytes for the same entries."""
    parts = [_header(number, entry) for number, entry in enumerate(entries, start=1)]
    return b"".join(parts) + _header(0, Entry("TRAILER!!!", 0))


def _header(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, major, minor, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields)
    return _padded(head + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
