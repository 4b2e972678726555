# SPDX-License-Identifier: MIT
"""The C library, for what Python's standard library lacks. Light: the new kernel needs it, too."""

import ctypes
import functools
import os


@functools.cache
def library() -> ctypes.CDLL:
    """Return the C library of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def call(name: str, number: int, *arguments: object) -> int:
    """Make a system call and return its result (syscall(2)).

    :param arguments: of ctypes, as the kernel wants them
    :raises OSError: with the name of the call
    """
    result = int(library().syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise failed(name)
    return result


def failed(name: str) -> OSError:
    """Return the error of a call that has just failed."""
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")
