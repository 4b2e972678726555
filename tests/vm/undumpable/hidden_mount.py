# SPDX-License-Identifier: MIT
"""Runs in the guest: an open file of a mount over which another one is mounted."""

from condition import directory, hold, mount

CHECK = "containers.files"


def make() -> object:
    where = directory("mount")
    mount("below", str(where), "tmpfs")
    held = (where / "file").open("w")
    mount("above", str(where), "tmpfs")
    return held


hold(make)
