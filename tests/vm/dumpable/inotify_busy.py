# SPDX-License-Identifier: MIT
"""Runs in the guest: an inotify with events that nobody has read, and on a deleted file."""

import ctypes

from condition import call, directory, hold

IN_ALL = 0xFFF


def make() -> object:
    file = directory() / "file"
    held = file.open("w")
    fd = call("inotify_init")
    call("inotify_add_watch", fd, ctypes.c_char_p(str(file).encode()), IN_ALL)
    file.write_text("changed")
    file.unlink()
    return fd, held


hold(make)
