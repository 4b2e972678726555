# SPDX-License-Identifier: MIT
"""Running a function in a network of its own."""

import ctypes
import fcntl
import os
import pickle
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def in_network(function: Callable[[], T]) -> T:
    """Return what ``function`` returns in a child process whose network is a loopback device that is up."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            _leave()
            result: object = function()
        except BaseException:
            result = RuntimeError(traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = pickle.load(pipe)
    os.waitpid(child, 0)
    if isinstance(found, RuntimeError):
        if "unshare" in str(found) and os.geteuid() != 0:
            pytest.skip("needs root, or user namespaces for everybody")
        raise found
    return found  # type: ignore[no-any-return]


def _leave() -> None:
    sys.stdout = sys.stderr
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if uid else 0)) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as f:
                f.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
