# SPDX-License-Identifier: MIT
"""Runs in the guest: an open file over which another one is mounted."""

from condition import directory, hold, mount

CHECK = "containers.files"
MS_BIND = 0x1000


def make() -> object:
    file, other = directory() / "file", directory() / "other"
    other.write_text("other")
    held = file.open("w")
    mount(str(other), str(file), None, MS_BIND)
    return held


hold(make)
