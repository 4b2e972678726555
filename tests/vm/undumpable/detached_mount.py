# SPDX-License-Identifier: MIT
"""Runs in the guest: an open file of a file system that is unmounted."""

import ctypes

from condition import call, directory, hold, mount

CHECK = "containers.files"
MNT_DETACH = 2


def make() -> object:
    where = directory("mount")
    mount("detached", str(where), "tmpfs")
    held = (where / "file").open("w")
    call("umount2", ctypes.c_char_p(str(where).encode()), MNT_DETACH)
    return held


hold(make)
