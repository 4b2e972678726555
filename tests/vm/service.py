# SPDX-License-Identifier: MIT
"""Runs in the guest: a service to preserve: counts, tells its count whoever asks, and uses what services use.

service.py NAME [PORT]: counts on standard output, or, as a daemon, into /var/log/NAME.
"""

import fcntl
import json
import mmap
import os
import socket
import sys
import threading
import time

name, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
if name == "daemon":
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    with open("/run/daemon.pid", "w") as file:
        file.write(f"{os.getpid()}\n")
    log = os.open("/var/log/daemon", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
count = 0
memory: mmap.mmap | None = None
if name == "shelf":  # files in memory
    lock = os.open("/run/shelf/lock", os.O_WRONLY | os.O_CREAT)
    os.write(lock, b"locked")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    with open("/dev/shm/shelf", "w+b") as shared:
        shared.truncate(1 << 20)
        memory = mmap.mmap(shared.fileno(), 1 << 20)
    memory[4096:4103] = b"written"
if name == "victim":
    os.open("/var/lib/victim", os.O_RDWR | os.O_CREAT)


def listener() -> socket.socket:
    """Return the socket that systemd has opened, or one of our own."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=3)
    return socket.create_server(("", port))


def talk(connection: socket.socket) -> None:
    """Answer whatever comes."""
    while connection.recv(100):
        facts: dict[str, int | str] = {"pid": os.getpid(), "count": count}
        if memory is not None:
            facts["memory"] = memory[4096:4103].decode()
        connection.send(json.dumps(facts).encode() + b"\n")


def serve(listening: socket.socket) -> None:
    """Talk to everybody."""
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


if port or "LISTEN_PID" in os.environ:
    threading.Thread(target=serve, args=(listener(),), daemon=True).start()
notify = None
if "NOTIFY_SOCKET" in os.environ:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.connect(os.environ["NOTIFY_SOCKET"])
    notify.send(b"READY=1")
while True:
    count += 1
    print(name, "counts", count, flush=True)
    if notify is not None and count % 10 == 0:
        notify.send(b"WATCHDOG=1\nSTATUS=at %d" % count)
    time.sleep(0.1)
