# SPDX-License-Identifier: MIT
"""Three processes that hold every kind of connection, with numbered messages under way in each.

::

    outside ──TCP, UDP──► parent ──pipe, FIFO, unix sockets──► child      one tree
                             └────TCP on loopback────► peer               another tree

What is received is read slower than it is sent, so that the buffers are full whenever the trees are frozen. Each
process answers at a unix socket with what it has counted and what it found wrong.

usage: server.py parent|peer DIRECTORY
"""

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import counting

PORT, LOOPBACK_PORT = 7300, 7301
STEP_SECONDS = 0.1
MESSAGE_BYTES = 256
HALF_BYTES = 48 << 10
GAP_SECONDS = 1.0
"""If there is more than this between two looks at the clock the tree stood still, or the machine was busy."""
LONG_SECONDS = 36_000
SIOCINQ, SIOCOUTQ = termios.FIONREAD, termios.TIOCOUTQ
SIGEV_SIGNAL = 0

Json = dict[str, object]


class Tally:
    """What a process counts by kind, and what it found wrong."""

    def __init__(self, role: str) -> None:
        self.lock = threading.Lock()
        self.kinds: dict[str, dict[str, int | str]] = {}
        self.errors: list[str] = []
        self.facts: Json = {"role": role, "pid": os.getpid(), "marker": os.urandom(8).hex()}
        self.samples: dict[str, Callable[[], int]] = {}

    def add(self, kind: str, count: int = 1, name: str = "count") -> None:
        """Count."""
        with self.lock:
            values = self.kinds.setdefault(kind, {})
            values[name] = int(values.get(name, 0)) + count

    def error(self, kind: str, text: str) -> None:
        """Note what is wrong."""
        with self.lock:
            if len(self.errors) < 20:
                self.errors.append(f"{kind}: {text}")

    def queue(self, name: str, sock: socket.socket | int, request: int) -> None:
        """Have it noted how many bytes wait in a queue whenever the clock is looked at."""

        def size() -> int:
            return int(struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))[0])

        self.samples[name] = size

    def report(self) -> Json:
        """Return everything."""
        with self.lock:
            return {
                **self.facts,
                "pid_now": os.getpid(),
                "realtime_ns": time.time_ns(),
                "raw_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW),
                "kinds": {kind: dict(values) for kind, values in self.kinds.items()},
                "errors": list(self.errors),
                "queues": queues(self),
            }


def queues(tally: Tally) -> dict[str, int]:
    """Return how many bytes wait where."""
    found = {}
    for name, size in list(tally.samples.items()):
        try:
            found[name] = size()
        except (OSError, ValueError):  # closed
            continue
    return found


def forever(tally: Tally, kind: str, step: Callable[[], None]) -> None:
    """Repeat a step in a thread; an exception is an error and the end of the thread."""

    def loop() -> None:
        try:
            while True:
                step()
        except Exception as e:
            tally.error(kind, f"{type(e).__name__}: {e}")

    threading.Thread(target=loop, name=kind, daemon=True).start()


def message(number: int) -> bytes:
    """Return a message: its number, and as many bytes that follow from it."""
    return struct.pack(">Q", number) + bytes([number & 0xFF]) * (MESSAGE_BYTES - 8)


def writing(tally: Tally, kind: str, write: Callable[[bytes], int | None]) -> None:
    """Send numbered messages without end; whoever reads them is slower."""
    number = 0

    def step() -> None:
        nonlocal number
        data = message(number)
        while data:
            sent = write(data)
            data = data[sent:] if sent is not None else b""
        number += 1
        tally.add(kind, name="sent")

    forever(tally, kind, step)


def reading(tally: Tally, kind: str, read: Callable[[int], bytes]) -> None:
    """Take the messages slowly: none may be lost, come twice or be damaged."""
    number = 0

    def step() -> None:
        nonlocal number
        data = b""
        while len(data) < MESSAGE_BYTES:
            got = read(MESSAGE_BYTES - len(data))
            if not got:
                raise EOFError(f"the end after message {number}")
            data += got
        if data != message(number):
            raise ValueError(f"message {struct.unpack('>Q', data[:8])[0]} instead of {number}")
        number += 1
        tally.add(kind, name="received")
        time.sleep(STEP_SECONDS)

    forever(tally, kind, step)


def both_ways(tally: Tally, kind: str, sock: socket.socket) -> None:
    """Send and receive on one socket."""
    tally.queue(f"{kind} unread", sock, SIOCINQ)
    if sock.family == socket.AF_INET:
        tally.queue(f"{kind} unsent", sock, SIOCOUTQ)
    writing(tally, kind, sock.send)
    reading(tally, kind, sock.recv)


def control(tally: Tally, directory: str, role: str, commands: dict[str, Callable[[], None]]) -> None:
    """Answer at a unix socket with the report; a command is carried out first."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{directory}/{role}.control")
    listener.listen()

    def step() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            command = stream.readline().decode().strip()
            commands.get(command, lambda: None)()
            stream.write(json.dumps(tally.report()).encode() + b"\n")

    forever(tally, "control", step)


def boot() -> str:
    """Return the name of this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def clocks(tally: Tally) -> None:
    """Look at the clocks all the time: none may go back; note what they and the queues were around a standstill."""
    last = [time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()]
    was = queues(tally)

    def step() -> None:
        nonlocal last, was
        now = [time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()]
        for name, before, after in zip(("monotonic", "boottime", "realtime"), last, now, strict=True):
            if after < before:
                tally.error("clocks", f"{name} went back by {before - after} ns")
        if (now[2] - last[2]) / 1e9 > GAP_SECONDS:
            gap = {
                "last_ns": last,
                "first_ns": now,
                "raw_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW),
                "boot": boot(),
                "queues_before": was,
                "queues_after": queues(tally),
            }
            with tally.lock:
                tally.facts.setdefault("gaps", [])
                gaps = tally.facts["gaps"]
                if isinstance(gaps, list):
                    gaps.append(gap)
                    del gaps[:-50]
        last, was = now, queues(tally)
        tally.add("clocks")
        time.sleep(0.02)

    forever(tally, "clocks", step)


class Itimerspec(ctypes.Structure):
    """``struct itimerspec``."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns"))


class Sigevent(ctypes.Structure):
    """``struct sigevent``."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * 48),
    )


def timers(tally: Tally) -> None:
    """Have every kind of timer fire, and some that are far from it."""
    periodic = os.timerfd_create(time.CLOCK_MONOTONIC)
    os.timerfd_settime(periodic, initial=0.5, interval=0.5)

    def expirations() -> None:
        tally.add("timerfd", struct.unpack("=Q", os.read(periodic, 8))[0])

    forever(tally, "timerfd", expirations)

    def absolute() -> None:
        # anew each time: most of these are armed when the tree is frozen
        fd = os.timerfd_create(time.CLOCK_MONOTONIC)
        os.timerfd_settime_ns(fd, flags=os.TFD_TIMER_ABSTIME, initial=time.monotonic_ns() + 700_000_000)
        os.read(fd, 8)
        os.close(fd)
        tally.add("absolute timerfd")

    forever(tally, "absolute timerfd", absolute)

    def sleep() -> None:
        time.sleep(0.7)
        tally.add("nanosleep")

    forever(tally, "nanosleep", sleep)

    def poll() -> None:
        select.select([], [], [], 0.7)
        tally.add("select")

    forever(tally, "select", poll)
    condition = threading.Condition()

    def wait() -> None:
        with condition:
            condition.wait(0.7)
        tally.add("futex")

    forever(tally, "futex", wait)

    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_void_p()
    event = Sigevent(None, signal.SIGUSR1, SIGEV_SIGNAL)
    period = Itimerspec(0, 500_000_000, 0, 500_000_000)
    if libc.timer_create(
        time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(number)
    ) or libc.timer_settime(number, 0, ctypes.byref(period), None):
        raise OSError(ctypes.get_errno(), "timer_create")

    # Far away: how much is left of these says what the standstill did to them.
    long = os.timerfd_create(time.CLOCK_MONOTONIC)
    begun = time.monotonic()
    os.timerfd_settime(long, initial=LONG_SECONDS)

    def left() -> int:
        return round(1e6 * (os.timerfd_gettime(long)[0] + (time.monotonic() - begun) - LONG_SECONDS))

    tally.samples["microseconds that a timer is late"] = left


def signals(tally: Tally) -> None:
    """Count the signals of the timers; only the main thread gets them."""
    counts = {signal.SIGALRM: "itimer", signal.SIGUSR1: "POSIX timer"}
    for number in counts:
        signal.signal(number, lambda *_: None)
    # both would interrupt alarm(2), which is the same timer as the itimer
    timers(tally)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    rounds = 0
    while True:
        found = signal.sigwait(counts)
        tally.add(counts[found])
        rounds += found == signal.SIGALRM
        if found == signal.SIGALRM and rounds % 10 == 0:  # now and then an alarm in the place of the itimer
            signal.alarm(1)
            if signal.sigwait({signal.SIGALRM}) == signal.SIGALRM:
                tally.add("alarm")
            signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)


class Outside:
    """What a client outside may ask for on a connection: the first line says what."""

    def __init__(self, tally: Tally, new_stream: "type[counting.Stream]") -> None:
        self.tally = tally
        self.new_stream = new_stream
        self.go = threading.Event()
        """What is held back until after the upgrade may be read."""
        self.listener = socket.create_server(("0.0.0.0", PORT), backlog=64)

    def serve(self) -> None:
        """Accept one connection."""
        connection, _ = self.listener.accept()
        threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        """Serve one connection to its end."""
        kind = ""
        try:
            with connection:
                while not kind.endswith("\n"):
                    got = connection.recv(1)
                    if not got:
                        return
                    kind += got.decode()
                kind = kind.strip()
                getattr(self, kind)(connection)
        except Exception as e:
            self.tally.error(kind, f"{type(e).__name__}: {e}")

    def opened(self, connection: socket.socket) -> None:
        """Send back what comes: connections that are opened and closed all the time."""
        connection.sendall(connection.recv(1000))
        self.tally.add("opened")

    def clock(self, connection: socket.socket) -> None:
        """Answer each byte with the time."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while connection.recv(1):
            connection.sendall(struct.pack(">Q", time.time_ns()))
            self.tally.add("clock")

    def idle(self, connection: socket.socket) -> None:
        """Wait, with keepalive; say the options of the socket when asked at last."""
        options = (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
        )
        for level, name, value in options:
            connection.setsockopt(level, name, value)
        self.tally.add("idle")
        self.tally.samples["idle options lost"] = lambda: sum(
            connection.getsockopt(level, name) != value for level, name, value in options
        )
        asked = connection.recv(100)
        connection.sendall(asked)
        self.tally.samples.pop("idle options lost")

    def stream(self, connection: socket.socket) -> None:
        """Send and receive as much as goes, until the client has ended its direction; then say how much it was."""
        self.tally.queue("stream unread", connection, SIOCINQ)
        self.tally.queue("stream unsent", connection, SIOCOUTQ)
        ended = threading.Event()
        sent = self.new_stream(2)

        def send() -> None:
            while not ended.is_set():
                sent.at += connection.send(sent.next())

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        received = self.receive("stream", connection)
        ended.set()
        sender.join()
        self.tally.facts["stream sent"] = sent.at
        self.tally.facts["stream received"] = received

    def receive(self, kind: str, connection: socket.socket) -> int:
        """Read a stream to its end; return its length."""
        received = self.new_stream(1)
        while data := connection.recv(8192):
            wrong = received.check(data)
            if wrong:
                raise ValueError(wrong)
            self.tally.add(kind, len(data), "received")
            time.sleep(STEP_SECONDS / 2)
        return int(received.at)

    def client_ended(self, connection: socket.socket) -> None:
        """Go on sending to a client that has ended its direction; what it sent is read after the upgrade."""
        self.tally.queue("client_ended unread", connection, SIOCINQ)
        sent = self.new_stream(2)

        def send() -> None:
            with suppress(OSError):  # the client has closed it: it says itself if that was too early
                while True:
                    sent.at += connection.send(sent.next()[:64])
                    time.sleep(STEP_SECONDS)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        self.go.wait()
        received = self.receive("client_ended", connection)
        if received != HALF_BYTES:
            raise ValueError(f"the end after {received} bytes instead of {HALF_BYTES}")
        self.tally.add("client_ended", name="ends")
        sender.join()

    def server_ended(self, connection: socket.socket) -> None:
        """End our direction at once, and go on reading."""
        connection.sendall(b"end")
        connection.shutdown(socket.SHUT_WR)
        self.tally.queue("server_ended unread", connection, SIOCINQ)
        self.tally.facts["server_ended received"] = self.receive("server_ended", connection)


def parent(directory: str) -> None:
    """Be the parent: it makes all pairs, and forks the child."""
    fifo = f"{directory}/way.fifo"
    os.mkfifo(fifo)
    pipe = os.pipe()
    # One end of each kind for either process
    pairs = {
        "unix stream": socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM),
        "unix datagram": socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "unix seqpacket": socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    }
    named = {"unix path": f"{directory}/way.socket", "unix abstract": "\0streams"}
    listeners = {}
    for kind, address in named.items():
        listeners[kind] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listeners[kind].bind(address)
        listeners[kind].listen()
    box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    box.bind(f"{directory}/box.socket")
    child = os.fork() == 0
    tally = Tally("child" if child else "parent")
    for kind, pair in pairs.items():
        pair[not child].close()
        both_ways(tally, kind, pair[child])
    if child:
        os.close(pipe[0])
        box.close()
        writing(tally, "pipe", lambda data: os.write(pipe[1], data))
        way = os.open(fifo, os.O_WRONLY)
        writing(tally, "FIFO", lambda data: os.write(way, data))
        for kind, address in named.items():
            listeners[kind].close()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(address)
            both_ways(tally, kind, sock)
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        writing(tally, "unix box", lambda data: sender.sendto(data, f"{directory}/box.socket"))
        control(tally, directory, "child", {})
        signals(tally)
    os.close(pipe[1])
    tally.queue("pipe unread", pipe[0], SIOCINQ)
    reading(tally, "pipe", lambda size: os.read(pipe[0], size))
    way = os.open(fifo, os.O_RDONLY)
    tally.queue("FIFO unread", way, SIOCINQ)
    reading(tally, "FIFO", lambda size: os.read(way, size))
    tally.queue("unix box unread", box, SIOCINQ)
    reading(tally, "unix box", box.recv)
    for kind, listener in listeners.items():
        both_ways(tally, kind, listener.accept()[0])
    while True:
        try:
            across = socket.create_connection(("127.0.0.1", LOOPBACK_PORT))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    both_ways(tally, "loopback", across)

    sys.path.insert(0, directory)
    sys.dont_write_bytecode = True
    import counting

    outside = Outside(tally, counting.Stream)
    forever(tally, "connections", outside.serve)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", PORT))

    def answer() -> None:
        data, address = datagrams.recvfrom(2000)
        datagrams.sendto(data, address)
        tally.add("udp")

    forever(tally, "udp", answer)
    clocks(tally)
    control(tally, directory, "parent", {"go": outside.go.set})
    threading.Event().wait()


def peer(directory: str) -> None:
    """Be the other tree."""
    tally = Tally("peer")
    listener = socket.create_server(("127.0.0.1", LOOPBACK_PORT))
    both_ways(tally, "loopback", listener.accept()[0])
    control(tally, directory, "peer", {})
    threading.Event().wait()


def main() -> None:
    """Run."""
    role, directory = sys.argv[1:]
    # The signals of the timers are waited for by one thread of the child; no other may take them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGUSR1})
    {"parent": parent, "peer": peer}[role](directory)


main()
