# SPDX-License-Identifier: MIT
"""A server of asyncio that has its answers made by a pool of processes.

Between them are what multiprocessing offers: pipes and semaphores of the pool, a block of shared memory that all write
under a lock, a queue that a process of its own reads, and a manager's dictionary behind a unix socket.
"""

import asyncio
import json
import multiprocessing
import os
import secrets
import signal
import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from typing import Any

WORKERS = 2
BLOCK_BYTES = 8 << 20
CELL = 8
TOLD_EVERY = 10
KEPT_BYTES = 1 << 20
LOOKED_AT_BYTES = 64 << 10

worker: dict[str, Any] = {}


def enter(name: str, lock: Any, queue: Any) -> None:
    """Set a worker up: it keeps the shared block open, and memory of its own."""
    block = SharedMemory(name=name, track=False) if sys.version_info >= (3, 13) else SharedMemory(name=name)
    worker.update(block=block, lock=lock, queue=queue, kept=secrets.token_bytes(KEPT_BYTES))
    worker["checksums"] = [zlib.crc32(part) for part in parts(worker["kept"])]


def parts(kept: bytes) -> list[bytes]:
    """Return memory in the parts that are looked at one by one."""
    return [kept[at : at + LOOKED_AT_BYTES] for at in range(0, len(kept), LOOKED_AT_BYTES)]


def work(number: int) -> dict[str, Any]:
    """Count one up in shared memory, tell the listener, and see that nothing changed behind our back."""
    with worker["lock"]:
        view = worker["block"].buf
        count = int.from_bytes(view[:CELL], "little") + 1
        view[:CELL] = count.to_bytes(CELL, "little")
        at = CELL * (1 + count % (BLOCK_BYTES // CELL - 1))
        view[at : at + CELL] = count.to_bytes(CELL, "little")
        worker["queue"].put(count)
    part = number % len(worker["checksums"])
    at = part * LOOKED_AT_BYTES
    good = zlib.crc32(worker["kept"][at : at + LOOKED_AT_BYTES]) == worker["checksums"][part]
    return {"number": number, "count": count, "worker": os.getpid(), "kept": good}


def listen(queue: Any, status: Any) -> None:
    """Read the queue: every count comes once, in order."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    last = 0
    while True:
        count = queue.get()
        if count != last + 1:
            status["errors"] = status["errors"] + 1
        last = count
        if count % TOLD_EVERY == 0:
            status["heard"] = count


class Server:
    """What the clients see."""

    def __init__(self, pool: ProcessPoolExecutor, status: Any) -> None:
        self.pool, self.status = pool, status
        self.marker = secrets.token_hex(8)
        self.ticks = 0
        self.late = 0.0
        self.slots = asyncio.Semaphore(WORKERS)

    async def tick(self) -> None:
        """Count the time; the clock of asyncio must never go back."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(0.1)
            now = loop.time()
            self.late = max(self.late, now - before - 0.1)
            if now < before:
                self.status["errors"] = self.status["errors"] + 1
            self.ticks, before = self.ticks + 1, now

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer each number of one client in order."""
        loop = asyncio.get_running_loop()
        while line := await reader.readline():
            if line.strip() == b"status":
                answer = {**dict(self.status), "parent": os.getpid(), "ticks": self.ticks}
            else:
                async with self.slots:
                    answer = await loop.run_in_executor(self.pool, work, int(line))
            answer["marker"] = self.marker
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


async def main(port: int) -> None:
    """Start the processes, then serve."""
    context = multiprocessing.get_context("fork")
    manager = context.Manager()
    status = manager.dict(errors=0, heard=0, started=time.time())
    block = SharedMemory(create=True, size=BLOCK_BYTES)
    lock, queue = context.Lock(), context.SimpleQueue()
    context.Process(target=listen, args=(queue, status), daemon=True).start()
    pool = ProcessPoolExecutor(WORKERS, context, enter, (block.name, lock, queue))
    await asyncio.gather(*(asyncio.wrap_future(pool.submit(os.getpid)) for _ in range(WORKERS)))
    server = Server(pool, status)
    ticker = asyncio.create_task(server.tick())
    async with await asyncio.start_server(server.serve, "0.0.0.0", port):
        await ticker


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
