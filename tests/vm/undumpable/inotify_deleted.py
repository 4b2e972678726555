# SPDX-License-Identifier: MIT
"""Runs in the guest: an inotify on a deleted file of a tmpfs."""

import ctypes

from condition import call, directory, hold, mount

CHECK = "containers.watches"
IN_MODIFY = 2


def make() -> object:
    where = directory("mount")
    mount("watched", str(where), "tmpfs")
    file = where / "file"
    held = file.open("w")
    fd = call("inotify_init")
    call("inotify_add_watch", fd, ctypes.c_char_p(str(file).encode()), IN_MODIFY)
    file.unlink()
    return fd, held


hold(make)
