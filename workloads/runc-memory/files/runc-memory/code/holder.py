# SPDX-License-Identifier: MIT
"""The container's init: it forks processes that hold memory of each class and check it by checksum for ever.

A process checks one chunk a step and rewrites one chunk a pass, so that fresh and old pages are both there
when the container is frozen. It says what it found in a status file of its own, written in place; a mismatch
is counted and the process goes on.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable

MIB = 1 << 20
PAGE = 4096
CHUNK = 512 * 1024
STATUS_BYTES = 1024
DATA = os.environ.get("DATA", "/data")
TOTAL_MIB = int(os.environ.get("MEMORY_MIB", "64"))
SEED = int(os.environ.get("MEMORY_SEED", "1"))
STEP_SECONDS = float(os.environ.get("MEMORY_STEP_SECONDS", "0.1"))


def content(region: str, chunk: int, generation: int) -> bytes:
    """Return a chunk that is the same for the same arguments and in which no two pages are the same."""
    noise = random.Random(f"{SEED} {region} {chunk} {generation}").randbytes(16 * PAGE)
    data = bytearray(noise * (CHUNK // len(noise)))
    for page in range(CHUNK // PAGE):
        struct.pack_into("<QQQ", data, page * PAGE, chunk, generation, page)
    return bytes(data)


class Region:
    """A mapping cut into chunks, each with the checksum it must have."""

    def __init__(self, name: str, memory: mmap.mmap) -> None:
        self.name = name
        self.memory = memory
        self.view = memoryview(memory)
        self.chunks = len(memory) // CHUNK
        self.generations = [0] * self.chunks
        self.checksums = [0] * self.chunks
        self.still = False

    def fill(self) -> "Region":
        """Write all chunks."""
        for chunk in range(self.chunks):
            self.write(chunk, 0)
        return self

    def write(self, chunk: int, generation: int) -> None:
        """Write one chunk and note its checksum, which is computed from the source, not read back."""
        data = content(self.name, chunk, generation)
        self.view[chunk * CHUNK : (chunk + 1) * CHUNK] = data
        self.generations[chunk] = generation
        self.checksums[chunk] = zlib.crc32(data)

    def rewrite(self, chunk: int) -> None:
        """Give a chunk its next contents, unless the region is to be left as it is."""
        if not self.still:
            self.write(chunk, self.generations[chunk] + 1)

    def intact(self, chunk: int) -> bool:
        """Tell whether a chunk has the checksum it must have."""
        return zlib.crc32(self.view[chunk * CHUNK : (chunk + 1) * CHUNK]) == self.checksums[chunk]


class Status:
    """What a process tells the outside: counters, the number of errors, the last one in words."""

    def __init__(self, role: str) -> None:
        self.fd = os.open(f"{DATA}/{role}.status", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self.values: dict[str, int | str] = {
            "role": role,
            "pid": os.getpid(),
            "parent": os.getppid(),
            "marker": os.urandom(8).hex(),  # lives in this process's memory only
            "checks": 0,
            "passes": 0,
            "errors": 0,
            "last_error": "",
        }
        self.clock = time.monotonic_ns()

    def error(self, text: str) -> None:
        """Count an error."""
        self.values["errors"] = int(self.values["errors"]) + 1
        self.values["last_error"] = text[:200]

    def write(self, **more: int) -> None:
        """Write the status in place, after a look at what must not change under a process."""
        now = time.monotonic_ns()
        if now < self.clock:
            self.error(f"the monotonic clock went back by {self.clock - now} ns")
        self.clock = now
        for what, value in (("pid", os.getpid()), ("parent", os.getppid())):
            if value != self.values[what]:
                self.error(f"{what} was {self.values[what]}, is {value}")
        self.values.update(more)
        self.values["monotonic_ns"] = now
        os.pwrite(self.fd, json.dumps(self.values).encode().ljust(STATUS_BYTES), 0)


Also = Callable[["Status", Region, int], None]


def watch(role: str, regions: list[Region], also: Also | None = None) -> None:
    """Check chunk after chunk of the regions, for ever."""
    status = Status(role)
    checks = passes = 0
    while True:
        for region in regions:
            for chunk in range(region.chunks):
                if not region.intact(chunk):
                    status.error(f"{region.name}: chunk {chunk} generation {region.generations[chunk]}")
                    region.rewrite(chunk)
                if also:
                    also(status, region, chunk)
                checks += 1
                status.write(checks=checks, passes=passes)
                time.sleep(STEP_SECONDS)
            region.rewrite(passes % region.chunks)
        passes += 1


def private_memory(size: int) -> None:
    """Hold private anonymous memory."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    watch("private", [Region("private", memory).fill()])


def copied_on_write(size: int) -> None:
    """Hold memory of which a child shares the first half and has changed pages of the second."""
    parts = [
        Region(name, mmap.mmap(-1, size // 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).fill()
        for name in ("cow-shared", "cow-changed")
    ]
    if fork(lambda: cow_child(parts)) > 0:
        watch("cow-parent", still_first(parts))


def cow_child(parts: list[Region]) -> None:
    """Change every other chunk of the second part, then check both."""
    for chunk in range(0, parts[1].chunks, 2):
        parts[1].write(chunk, 1000)
    watch("cow-child", still_first(parts))


def still_first(parts: list[Region]) -> list[Region]:
    """Return the parts with the first never written again, which would end the sharing."""
    parts[0].still = True
    return parts


def shared_memory(region: Region, turn_fd: int, role: str, remainder: int) -> None:
    """Write shared memory by turns with another process, checking what that one wrote.

    The turn, and the checksum of each chunk, are in shared memory too: one page of a second mapping.
    """
    header = mmap.mmap(turn_fd, PAGE)
    status = Status(role)
    checks = passes = 0
    while True:
        (turn,) = struct.unpack_from("<Q", header, 0)
        if turn % 2 == remainder:
            chunk = turn % region.chunks
            # What the other has just written, and what stood here for a whole round.
            for looked_at in {(turn - 1) % region.chunks, chunk} if turn >= region.chunks else ():
                expected = struct.unpack_from("<I", header, 64 + 4 * looked_at)[0]
                if zlib.crc32(region.view[looked_at * CHUNK : (looked_at + 1) * CHUNK]) != expected:
                    status.error(f"{region.name}: chunk {looked_at} in turn {turn}")
            region.write(chunk, turn)
            struct.pack_into("<I", header, 64 + 4 * chunk, region.checksums[chunk])
            struct.pack_into("<Q", header, 0, turn + 1)
            passes = (turn + 1) // region.chunks
        checks += 1
        status.write(checks=checks, passes=passes, turn=turn)
        time.sleep(STEP_SECONDS)


def memfd_memory(size: int) -> None:
    """Hold a memfd, looked at through its mapping and through its descriptor."""
    fd = os.memfd_create("held")
    os.ftruncate(fd, size)
    region = Region("memfd", mmap.mmap(fd, size)).fill()

    def through_descriptor(status: Status, region: Region, chunk: int) -> None:
        if zlib.crc32(os.pread(fd, CHUNK, chunk * CHUNK)) != region.checksums[chunk]:
            status.error(f"memfd: chunk {chunk} read through the descriptor")

    watch("memfd", [region], through_descriptor)


def file_memory(size: int) -> None:
    """Hold two mappings of a file: one as it is, one private with changed pages."""
    path = f"{DATA}/mapped"
    with open(path, "w+b") as file:
        for chunk in range(size // 2 // CHUNK):
            file.write(content("file", chunk, 0))
        file.flush()
        os.fsync(file.fileno())
        fd = os.dup(file.fileno())
    plain = Region("file", mmap.mmap(fd, size // 2, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    plain.checksums = [zlib.crc32(content("file", chunk, 0)) for chunk in range(plain.chunks)]
    plain.still = True
    changed = Region("file-private", mmap.mmap(fd, size // 2, flags=mmap.MAP_PRIVATE))
    changed.checksums = list(plain.checksums)
    for chunk in range(0, changed.chunks, 2):
        changed.write(chunk, 1)
    watch("file", [plain, changed])


def fork(run: Callable[[], None]) -> int:
    """Fork a process that does ``run`` and never comes back from it."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)
    return pid


def main() -> None:
    """Start everything and be an init: reap, and say how many have ended."""
    log = os.open(f"{DATA}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.close(log)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    eighth = max(TOTAL_MIB * MIB // 8 // (2 * CHUNK), 1) * 2 * CHUNK
    turns = Region("shared", mmap.mmap(-1, 2 * eighth))
    turn_fd = os.memfd_create("turns")
    os.ftruncate(turn_fd, PAGE)
    if turns.chunks > (PAGE - 64) // 4:
        sys.exit("MEMORY_MIB: the checksums of the shared memory do not fit in their page")
    for run in (
        lambda: private_memory(2 * eighth),
        lambda: copied_on_write(2 * eighth),
        lambda: shared_memory(turns, turn_fd, "shared-a", 0),
        lambda: shared_memory(turns, turn_fd, "shared-b", 1),
        lambda: memfd_memory(eighth),
        lambda: file_memory(eighth),
    ):
        fork(run)
    status = Status("init")
    checks = ended = 0
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                ended += 1
                status.error("a process has ended")
        except ChildProcessError:
            status.error("no process is left")
        checks += 1
        status.write(checks=checks, passes=checks, ended=ended)
        time.sleep(5 * STEP_SECONDS)


main()
