# SPDX-License-Identifier: MIT
"""Three processes pass numbered messages round a ring; each does something else in other threads.

::

    parent ──pipe──► left ──unix socketpair──► right ──pipe──► parent

Several messages are always under way, so that the buffers of pipes and sockets are not empty when the tree is
frozen. The messages carry the counters of left and right; the parent gives all to whoever asks at a TCP port.

usage: ring.py PORT DIRECTORY
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

STEP_SECONDS = float(os.environ.get("RING_STEP_SECONDS", "0.1"))
UNDER_WAY = 8
TICK_SECONDS = 0.5


class Counters:
    """What a process counts, and what it found wrong."""

    def __init__(self, role: str) -> None:
        self.lock = threading.Lock()
        self.values: dict[str, int | str] = {"role": role, "errors": 0, "last_error": ""}
        self.clock = time.monotonic_ns()

    def start(self) -> None:
        """Note who this process is; the marker lives in its memory only."""
        self.values |= {"pid": os.getpid(), "marker": os.urandom(8).hex()}

    def add(self, name: str) -> int:
        """Count one up and return the count."""
        with self.lock:
            count = int(self.values.get(name, 0)) + 1
            self.values[name] = count
            now = time.monotonic_ns()
            if now < self.clock:
                self._error(f"the monotonic clock went back by {self.clock - now} ns")
            self.clock = now
            return count

    def _error(self, text: str) -> None:
        self.values["errors"] = int(self.values["errors"]) + 1
        self.values["last_error"] = text[:200]

    def error(self, text: str) -> None:
        """Count an error."""
        with self.lock:
            self._error(text)

    def copy(self) -> dict[str, int | str]:
        """Return the counters, with the threads that are alive."""
        with self.lock:
            if os.getpid() != self.values["pid"]:
                self._error(f"pid was {self.values['pid']}, is {os.getpid()}")
            return self.values | {"threads": threading.active_count()}


def forever(counters: Counters, name: str, step: Callable[[], None]) -> None:
    """Repeat a step in a thread and count it; an exception is an error and the end of the thread."""

    def loop() -> None:
        try:
            while True:
                step()
                counters.add(name)
        except EOFError:
            os._exit(1)  # the ring is broken: verify misses this process
        except Exception as e:
            counters.error(f"{name}: {type(e).__name__}: {e}")

    threading.Thread(target=loop, name=name, daemon=True).start()


class Messages:
    """Whole lines from a descriptor, whose numbers must follow each other."""

    def __init__(self, fd: int, counters: Counters) -> None:
        self.fd = fd
        self.counters = counters
        self.unread = b""
        self.expected = 0

    def take(self) -> dict[str, object]:
        """Wait for the next message."""
        while b"\n" not in self.unread:
            got = os.read(self.fd, 4096)
            if not got:
                raise EOFError("the process before has ended")
            self.unread += got
        line, self.unread = self.unread.split(b"\n", 1)
        message: dict[str, object] = json.loads(line)
        if message["number"] != self.expected:
            self.counters.error(f"message {message['number']} instead of {self.expected}")
        self.expected = int(str(message["number"])) + 1
        return message


def put(fd: int, message: dict[str, object]) -> None:
    """Send one message."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def passing(role: str, source: int, target: int, counters: Counters) -> Callable[[], None]:
    """Return a step that takes a message, adds this process's counters and passes it on, one at a time.

    Left is by turns faster and slower than right, so that messages queue in the pipe and in the socket.
    """
    messages = Messages(source, counters)

    def step() -> None:
        message = messages.take()
        message[role] = counters.copy()
        slow = role == "left" and messages.expected // 20 % 2
        time.sleep(STEP_SECONDS * (1.0 if role == "right" else 1.5 if slow else 0.5))
        put(target, message)

    return step


def left(source: int, target: int) -> None:
    """Pass messages on; a second thread waits on a condition that a third one sets: futexes."""
    counters = Counters("left")
    counters.start()
    condition = threading.Condition()

    def wait() -> None:
        with condition:
            if not condition.wait(timeout=60 * TICK_SECONDS):
                raise TimeoutError("nobody set the condition")

    def wake() -> None:
        time.sleep(TICK_SECONDS)
        with condition:
            condition.notify_all()

    forever(counters, "passed", passing("left", source, target, counters))
    forever(counters, "woken", wait)
    forever(counters, "wakes", wake)
    threading.Event().wait()


def right(source: int, target: int) -> None:
    """Pass messages on; a second thread waits in epoll for an eventfd and a timer that others drive."""
    counters = Counters("right")
    counters.start()
    event = os.eventfd(0, os.EFD_CLOEXEC)
    poll = select.epoll()
    poll.register(event, select.EPOLLIN)

    def tick() -> None:
        time.sleep(TICK_SECONDS)
        os.eventfd_write(event, 1)

    def polled() -> None:
        if not poll.poll(60 * TICK_SECONDS):
            raise TimeoutError("no event")
        os.eventfd_read(event)

    forever(counters, "passed", passing("right", source, target, counters))
    forever(counters, "ticks", tick)
    forever(counters, "polled", polled)
    threading.Event().wait()


def parent(source: int, target: int, port: int, directory: str) -> None:
    """Keep messages under way, append to a file, count the alarms of a timer and answer at the port."""
    counters = Counters("parent")
    counters.start()
    slots = threading.Semaphore(UNDER_WAY)
    messages = Messages(source, counters)
    latest: dict[str, object] = {}
    clients: set[tuple[int, int]] = set()  # descriptor and thread of each connection: they come and go
    log = os.open(f"{directory}/lines", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    number = 0

    def send() -> None:
        nonlocal number
        slots.acquire()
        put(target, {"number": number})
        number += 1

    def receive() -> None:
        message = messages.take()
        latest.update({k: v for k, v in message.items() if k != "number"})
        slots.release()

    def append() -> None:
        time.sleep(TICK_SECONDS)
        os.write(log, f"line {int(counters.copy().get('lines', 0))}\n".encode())

    def serve() -> None:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        """Answer each line with one of JSON: how many it were on this connection, and all counters."""
        served = 0
        mine = (connection.fileno(), threading.get_native_id())
        clients.add(mine)
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                served += 1
                reply = {"request": line.decode().strip(), "served": served, "clients": sorted(clients)}
                reply |= {"parent": counters.copy(), **latest}
                stream.write(json.dumps(reply).encode() + b"\n")
                stream.flush()
        clients.discard(mine)

    listener = socket.create_server(("0.0.0.0", port), backlog=16)
    forever(counters, "sent", send)
    forever(counters, "received", receive)
    forever(counters, "lines", append)
    forever(counters, "connections", serve)

    # Only the main thread gets signals; it must be in Python code often enough to handle them.
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
    while True:
        signal.pause()
        counters.add("alarms")


def main() -> None:
    """Make the ring and become the parent."""
    port, directory = int(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    errors = os.open(f"{directory}/errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(errors, 2)
    os.close(errors)
    to_left = os.pipe()
    left_end, right_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    from_right = os.pipe()
    ends = {*to_left, left_end.fileno(), right_end.fileno(), *from_right}
    for run, source, target in (
        (left, to_left[0], left_end.fileno()),
        (right, right_end.fileno(), from_right[1]),
    ):
        if os.fork() == 0:
            for fd in ends - {source, target}:
                os.close(fd)
            run(source, target)
            os._exit(1)
    for fd in ends - {from_right[0], to_left[1]}:
        os.close(fd)
    parent(from_right[0], to_left[1], port, directory)


main()
