# SPDX-License-Identifier: MIT
"""A ``criu`` that speaks the RPC of the real one and does what a test tells it."""

import json
import sys
import sysconfig
from base64 import b64decode
from pathlib import Path
from typing import Any

from upgrade.criu import messages

Step = list[Any]

_PROGRAM = """#!{python} -IS
import base64, json, os, signal, socket, sys, time

sys.path[:0] = {path!r}
here = {here!r}
plan = json.load(open(here + "/plan.json"))
if plan.get("start") == "die":
    sys.exit(7)
import importlib.util
spec = importlib.util.spec_from_file_location("rpc_pb2", {rpc!r})
rpc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rpc)
line = socket.socket(fileno=int(sys.argv[2]))


def note(**what):
    with open(here + "/log", "a") as log:
        log.write(json.dumps(what) + chr(10))


note(arguments=sys.argv[1:], pid=os.getpid(), environment=dict(os.environ))
data = line.recv(1 << 20)
if not data:
    note(eof="request")
    sys.exit(0)
request = rpc.criu_req()
request.ParseFromString(data)
kind = rpc.criu_req_type.Name(request.type)
opts = request.opts.SerializeToString() if request.HasField("opts") else b""
note(request=kind, opts=base64.b64encode(opts).decode())
if request.type in (rpc.DUMP, rpc.RESTORE):
    # The descriptors are the client's: work_dir_fd is only valid in its process.
    parent = "/proc/%d/fd/%d/" % (os.getppid(), request.opts.work_dir_fd)
for step, *arguments in plan.get(kind, []):
    if step == "notify":
        answer = rpc.criu_resp(type=rpc.NOTIFY, success=True)
        answer.notify.script, answer.notify.pid = arguments[0], arguments[1]
        line.send(answer.SerializeToString())
        try:
            data = line.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            note(eof=arguments[0])
            sys.exit(1)
        reply = rpc.criu_req()
        reply.ParseFromString(data)
        note(notified=arguments[0], success=reply.notify_success, reply=rpc.criu_req_type.Name(reply.type))
    elif step == "write":
        with open(parent + arguments[0], "w") as file:
            file.write(arguments[1])
    elif step == "sleep":
        time.sleep(arguments[0])
    elif step == "descriptor":
        answer = rpc.criu_resp(type=rpc.NOTIFY, success=True)
        answer.notify.script, answer.notify.pid = "orphan-pts-master", 0
        socket.send_fds(line, [answer.SerializeToString()], [os.open("/dev/null", os.O_RDONLY)])
        line.recv(1 << 20)
    elif step == "die":
        sys.exit(arguments[0])
    elif step == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif step == "answer":
        answer = rpc.criu_resp(type=request.type, success=arguments[0].get("success", True))
        answer.cr_errmsg = arguments[0].get("message", "")
        answer.cr_errno = arguments[0].get("errno", 0)
        if request.type == rpc.RESTORE:
            answer.restore.pid = arguments[0].get("pid", 0)
        if request.type == rpc.VERSION:
            major, minor, sublevel = arguments[0]["version"]
            answer.version.major_number, answer.version.minor_number = major, minor
            if sublevel is not None:
                answer.version.sublevel = sublevel
        if request.type == rpc.FEATURE_CHECK:
            answer.features.mem_track = request.features.mem_track and arguments[0]["mem_track"]
        line.send(answer.SerializeToString())
"""


class FakeCriu:
    """The program ``criu`` in a directory, and what it saw."""

    def __init__(self, directory: Path, state: Path) -> None:
        self.directory = directory
        self.state = state
        self.plan: dict[str, Any] = {}
        self.install()
        self.on("VERSION", ["answer", {"version": [4, 1, 1]}])

    def install(self) -> None:
        """Write the program."""
        rpc = Path(str(messages().__file__))
        file = self.directory / "criu"
        text = _PROGRAM.format(
            python=sys.executable, path=[sysconfig.get_path("purelib")], here=str(self.state), rpc=str(rpc)
        )
        file.write_text(text)
        file.chmod(0o755)

    def on(self, request: str, *steps: Step) -> None:
        """Set what it does after a request of a kind."""
        self.plan[request] = list(steps)
        self._save()

    def dies_at_once(self) -> None:
        """Let it end before it reads anything."""
        self.plan["start"] = "die"
        self._save()

    def seen(self) -> list[dict[str, Any]]:
        """Return what it wrote down."""
        log = self.state / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def options(self, request: str) -> Any:
        """Return the ``criu_opts`` that came with a request."""
        (found,) = (note["opts"] for note in self.seen() if note.get("request") == request)
        options = messages().criu_opts()
        options.ParseFromString(b64decode(found))
        return options

    def answers(self) -> dict[str, bool]:
        """Return how each notification was answered."""
        return {note["notified"]: note["success"] for note in self.seen() if "notified" in note}

    def _save(self) -> None:
        (self.state / "plan.json").write_text(json.dumps(self.plan))
