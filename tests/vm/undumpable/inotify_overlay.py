# SPDX-License-Identifier: MIT
"""Runs in the guest: an inotify on an overlay."""

import ctypes

from condition import call, directory, hold, mount

CHECK = "containers.watches"
IN_MODIFY = 2


def make() -> object:
    lower, upper, work, where = (directory(name) for name in ("lower", "upper", "work", "merged"))
    (lower / "file").write_text("below")
    mount("overlay", str(where), "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")
    fd = call("inotify_init")
    call("inotify_add_watch", fd, ctypes.c_char_p(str(where / "file").encode()), IN_MODIFY)
    return fd


hold(make)
