# SPDX-License-Identifier: MIT
"""A task as CRIU's restorer leaves it: registered memory without pages, its descriptor with the page server.

A program of its own, so that a page fault stops nothing else. It checks every page against a model of its memory.
"""

import ctypes
import errno
import json
import mmap
import os
import random
import socket
import struct
import sys
import time
import traceback
from typing import Any

from upgrade import userfaultfd
from upgrade.userfaultfd import (
    PAGE_BYTES,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_UNMAP,
)

RESTORE_FINISHED = 0x52535446
ALL = (
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP
)
MAP_FIXED_NOREPLACE = 0x100000
MREMAP_MAYMOVE_FIXED = 3
MADV_FREE = 8

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p


def check(value: int, name: str) -> int:
    if value in (-1, (1 << 64) - 1):
        raise OSError(ctypes.get_errno(), name)
    return value


def map_at(address: int, pages: int) -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    check(
        libc.mmap(
            ctypes.c_void_p(address), ctypes.c_size_t(pages * PAGE_BYTES), 3, flags, -1, ctypes.c_long(0)
        ),
        "mmap",
    )


def unmap(address: int, pages: int) -> None:
    check(libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(pages * PAGE_BYTES)), "munmap")


def advise(address: int, pages: int, advice: int) -> None:
    check(libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(pages * PAGE_BYTES), advice), "madvise")


def move(source: int, target: int, pages: int) -> None:
    size = ctypes.c_size_t(pages * PAGE_BYTES)
    check(
        libc.mremap(ctypes.c_void_p(source), size, size, MREMAP_MAYMOVE_FIXED, ctypes.c_void_p(target)),
        "mremap",
    )


def content(value: int) -> bytes:
    return struct.pack("<Q", value) * (PAGE_BYTES // 8)


class Task:
    """The memory and what should be in it: a value for each page."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.random = random.Random(told.get("seed", 1))
        self.model: dict[int, int] = {}
        self.fd = userfaultfd.create()
        missing = ALL & ~userfaultfd.api(self.fd, ALL)
        assert not missing, missing
        number = 0
        for address, pages in told["maps"]:
            map_at(address, pages)
            userfaultfd.register(self.fd, address, pages * PAGE_BYTES)
            self.model.update({address + n * PAGE_BYTES: 0 for n in range(pages)})
        for address, pages in told["runs"]:
            for n in range(pages):
                self.model[address + n * PAGE_BYTES] = (told["pid"] << 40) + number + n + 1
            number += pages
        self.children: list[int] = []
        self.free = 0x300000000000

    def hand_over(self) -> None:
        """Do as CRIU does (criu/uffd.c)."""
        line = socket.socket(socket.AF_UNIX)
        line.connect(self.told["socket"])
        line.send(struct.pack("<i", -77))  # a zombie of the same tree
        line.send(struct.pack("<i", self.told["pid"]))
        socket.send_fds(line, [b"\0"], [self.fd])
        os.close(self.fd)
        if "early" in self.told:  # as the restorer itself does
            for address in self.told["early"]:
                self.look(address)
        line.send(struct.pack("<I", RESTORE_FINISHED))
        line.close()

    def look(self, address: int) -> None:
        found = ctypes.string_at(address, PAGE_BYTES)
        if found != content(self.model[address]):
            got = struct.unpack_from("<Q", found)[0]
            raise AssertionError(f"{address:#x}: {got:#x} instead of {self.model[address]:#x}")

    def look_all(self, addresses: list[int] | None = None) -> None:
        for address in sorted(self.model) if addresses is None else addresses:
            self.look(address)

    def stretch(self, most: int = 40) -> tuple[int, int]:
        """Return some pages that lie one behind the other."""
        start = self.random.choice(list(self.model))
        pages = 1
        wanted = self.random.randint(1, most)
        while pages < wanted and start + pages * PAGE_BYTES in self.model:
            pages += 1
        return start, pages

    def act(self) -> None:
        """Do something to the memory."""
        kind = self.random.choices(
            ["look", "write", "advise", "free", "unmap", "move", "protect", "fork"],
            [8, 6, 4, 2, 1, 3, 2, 0.4],
        )[0]
        start, pages = self.stretch()
        addresses = [start + n * PAGE_BYTES for n in range(pages)]
        if kind == "look":
            self.look_all(addresses)
        elif kind == "write":
            for address in addresses:
                self.model[address] = self.random.getrandbits(60)
                ctypes.memmove(address, content(self.model[address]), PAGE_BYTES)
        elif kind == "advise":
            advise(start, pages, mmap.MADV_DONTNEED)
            self.model.update(dict.fromkeys(addresses, 0))
        elif kind == "free":  # until it is written to a page may have its old contents or zeroes
            advise(start, pages, MADV_FREE)
            for address in addresses:
                self.model[address] = self.random.getrandbits(60)
                ctypes.memmove(address, content(self.model[address]), PAGE_BYTES)
        elif kind == "unmap":
            unmap(start, min(pages, 8))
            for address in addresses[:8]:
                del self.model[address]
        elif kind == "move":
            target = self.free
            self.free += (pages + self.random.randint(0, 2)) * PAGE_BYTES
            try:
                move(start, target, pages)
            except OSError as e:  # over several mappings: only one by one
                if e.errno != errno.EFAULT:
                    raise
                for n in range(pages):
                    move(start + n * PAGE_BYTES, target + n * PAGE_BYTES, 1)
            for n, address in enumerate(addresses):
                self.model[target + n * PAGE_BYTES] = self.model.pop(address)
        elif kind == "protect":
            check(libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(pages * PAGE_BYTES), 1), "mprotect")
            self.look_all(addresses)
            check(libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(pages * PAGE_BYTES), 3), "mprotect")
        elif kind == "fork" and len(self.children) < 3 and self.told.get("depth", 0) < 2:
            self.fork()

    def fork(self) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(self.child())
        self.children.append(pid)

    def child(self) -> int:
        try:
            self.children = []
            self.told["depth"] = self.told.get("depth", 0) + 1
            self.random.seed(os.getpid())
            self.act_for(self.told.get("seconds", 0))
            if self.told["scenario"] == "forks" and self.told["depth"] < 2:
                self.fork()
            self.look_all()
            self.reap()
        except BaseException:
            traceback.print_exc()
            return 1
        return 0

    def act_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.act()

    def reap(self) -> None:
        for pid in self.children:
            _, status = os.waitpid(pid, 0)
            assert status == 0, f"child {pid}: {status}"


def main() -> None:
    task = Task(json.loads(sys.argv[1]))
    told = task.told
    task.hand_over()
    if told["scenario"] == "read":
        task.look_all()
    elif told["scenario"] == "scattered":
        addresses = list(task.model)
        task.random.shuffle(addresses)
        task.look_all(addresses)
    elif told["scenario"] == "acts":
        task.act_for(told["seconds"])
        task.look_all()
        task.reap()
    elif told["scenario"] == "forks":  # one child, and one of that
        task.fork()
        task.look_all()
        task.reap()
    elif told["scenario"] == "after":  # everything has come before the first look
        sys.stdin.readline()
        task.look_all()
    elif told["scenario"] == "exit":
        task.look(next(iter(task.model)))
    elif told["scenario"] == "looks":
        first, *_, last = task.model
        task.look(first)
        print("first", flush=True)
        sys.stdin.readline()
        task.look(last)
        print("second", flush=True)
    elif told["scenario"] == "last":
        task.look(next(iter(task.model)))
        print("first", flush=True)
        sys.stdin.readline()
        address, pages = told["runs"][-1]
        task.look(address + (pages - 1) * PAGE_BYTES)
    elif told["scenario"] == "latency":
        addresses = list(task.model)
        task.random.shuffle(addresses)
        times = []
        for address in addresses[: told["looks"]]:
            begun = time.perf_counter_ns()
            ctypes.string_at(address, 8)
            times.append(time.perf_counter_ns() - begun)
        print(json.dumps(times))
        return
    print("right")


if __name__ == "__main__":
    main()
