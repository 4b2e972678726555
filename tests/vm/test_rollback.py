# SPDX-License-Identifier: MIT
"""Everything that can go wrong before the jump: both containers run on and nothing is left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import Answer, Guest, Guests
from upgrade.errors import ExitStatus

HERE = Path(__file__).parent
BOTH = ("--cgroup", "/workload/redis", "--container", "memory")
BALLAST = "/workload/ballast"
BALLAST_MIB = 256
EVENTS = "/run/seamless-upgrade/events.jsonl"


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a guest with Redis and a runc container."""
    yield from guests.boot(["redis", "runc-memory"])


@pytest.fixture
def untouched(guest: Guest) -> Iterator[Guest]:
    """Return the guest, and see afterwards that it is as it was."""
    before, services = guest.traces(), guest.services()
    yield guest
    assert guest.traces() == before
    assert services <= guest.services(), "services that were stopped are not back"
    assert guest.verify("redis", "runc-memory") == {}
    guest.shell("touch /root/writable /opt/writable")  # no file system is frozen


def start_task(guest: Guest, program: str, cgroup: str, *arguments: str) -> None:
    """Start a python program as a task tree in a cgroup of its own."""
    guest.machine.put(f"/root/{program}", (HERE / program).read_bytes())
    words = " ".join(["/usr/bin/python3", f"/root/{program}", *arguments])
    guest.shell(
        f"mkdir -p /sys/fs/cgroup{cgroup}; sh -c 'echo $$ > /sys/fs/cgroup{cgroup}/cgroup.procs;"
        f" cd /; exec setsid --fork {words} </dev/null >/dev/null 2>&1'"
    )
    guest.wait(f'test -n "$(cat /sys/fs/cgroup{cgroup}/cgroup.procs)"')


def end_task(guest: Guest, cgroup: str) -> None:
    """End the task tree of a cgroup."""
    guest.shell(f"echo 1 > /sys/fs/cgroup{cgroup}/cgroup.kill")
    guest.wait(f"rmdir /sys/fs/cgroup{cgroup}")


@pytest.fixture
def io_uring(guest: Guest) -> Iterator[str]:
    """Return a cgroup whose task CRIU cannot dump."""
    start_task(guest, "io_uring.py", "/workload/uring")
    guest.wait("ls -l /proc/$(cat /sys/fs/cgroup/workload/uring/cgroup.procs)/fd | grep -q io_uring")
    yield "/workload/uring"
    end_task(guest, "/workload/uring")


@pytest.fixture
def ballast(guest: Guest) -> Iterator[str]:
    """Return a cgroup whose dump takes a while."""
    start_task(guest, "ballast.py", BALLAST, str(BALLAST_MIB))
    guest.wait("test -s /run/ballast")
    yield BALLAST
    end_task(guest, BALLAST)


def test_ready(untouched: Guest) -> None:
    answer = untouched.command("check", "--json", "--kernel", untouched.target, *BOTH)
    assert answer.status == ExitStatus.DONE, answer
    assert {c["name"] for c in answer.json["containers"]} == {"/workload/redis", "memory"}
    assert answer.json["vdso"]["method"] == "in-place"
    text = untouched.command("check", "--kernel", untouched.target, *BOTH)
    assert text.status == ExitStatus.DONE
    assert "\nReady: " in text.out


@pytest.mark.parametrize(
    ("words", "status", "subject"),
    [
        (["--container", "nobody"], ExitStatus.REFUSED, "nobody"),
        (["--cgroup", "/no/such"], ExitStatus.REFUSED, "/no/such"),
        ([], ExitStatus.USAGE, None),
        (["--cgroup", "/workload/redis", "--append", "memmap=1G!8G"], ExitStatus.USAGE, "--append"),
        (["--cgroup", "/workload/redis", "--initrd", "/no/initrd"], ExitStatus.USAGE, "/no/initrd"),
    ],
)
def test_refused(untouched: Guest, words: list[str], status: ExitStatus, subject: str | None) -> None:
    answer = untouched.upgrade(*words)
    assert answer.status == status, answer
    assert answer.error["subject"] == subject
    assert answer.error["hint"]


def test_corrupt_kernel(untouched: Guest) -> None:
    untouched.shell(
        f"cp {untouched.target} /root/vmlinuz; cp /boot/initrd.img-* /root/;"
        "dd if=/dev/urandom of=/root/vmlinuz bs=1M seek=4 count=1 conv=notrunc status=none"
    )
    answer = untouched.command("run", "--yes", "--json", "--kernel", "/root/vmlinuz", *BOTH)
    assert answer.status == ExitStatus.REFUSED, answer
    assert answer.error["subject"] == "/root/vmlinuz"
    assert answer.error["hint"]


def test_without_privileges(untouched: Guest) -> None:
    command = [
        "setpriv",
        "--reuid=65534",
        "seamless-upgrade",
        "run",
        "--yes",
        "--json",
        "--kernel",
        untouched.target,
    ]
    done = untouched.machine.run([*command, *BOTH], check=False)
    assert done.returncode == ExitStatus.NOT_PRIVILEGED, done


def test_unsupported_resource(untouched: Guest, io_uring: str) -> None:
    answer = untouched.upgrade(*BOTH, "--cgroup", io_uring)
    assert answer.status == ExitStatus.REFUSED, answer
    assert answer.error["subject"] == io_uring
    assert "io_uring" in answer.error["message"]
    answer = untouched.upgrade(*BOTH, "--cgroup", io_uring, "--skip", "containers.descriptors")
    assert answer.status == ExitStatus.FAILED, answer
    assert answer.error["subject"] == io_uring
    assert "CRIU cannot dump it" in answer.error["message"]
    assert untouched.shell(f"cat /sys/fs/cgroup{io_uring}/cgroup.procs").strip()


def interrupt_while_dumping(guest: Guest, words: tuple[str, ...], kill: str) -> Answer:
    """Start an upgrade, do ``kill`` as soon as the dump has begun, and return its answer."""
    command = ["seamless-upgrade", "run", "--yes", "--json", "--kernel", guest.target, *words]
    guest.shell(f"rm -f /root/status {EVENTS}")
    script = 'echo $$ > /root/shell; "$@" >/root/out 2>/root/err & echo $! > /root/pid; wait $!; echo $? > /root/status'
    guest.machine.agent.start(["bash", "-c", script, "bash", *command])
    guest.shell(f"until grep -qs dumping {EVENTS}; do sleep 0.01; done; {kill}")
    guest.wait("test -s /root/status")
    read = [guest.shell(f"cat /root/{name}") for name in ("status", "out", "err")]
    return Answer(int(read[0]), read[1], read[2])


def test_interrupt(untouched: Guest, ballast: str) -> None:
    # python, unlike a background job of a shell, does not ignore SIGINT
    answer = interrupt_while_dumping(untouched, (*BOTH, "--cgroup", ballast), "kill -INT $(cat /root/pid)")
    assert answer.status == ExitStatus.INTERRUPTED, answer
    assert "aborted" in answer.error["message"]
    before = untouched.shell("cat /run/ballast")
    untouched.wait(f"test $(cat /run/ballast) -gt {before}")


def test_abort(untouched: Guest, ballast: str) -> None:
    answer = interrupt_while_dumping(untouched, (*BOTH, "--cgroup", ballast), "seamless-upgrade abort")
    assert answer.status == ExitStatus.INTERRUPTED, answer


def test_killed_run(untouched: Guest, ballast: str) -> None:
    kill = "kill -KILL $(systemctl show -P MainPID seamless-upgrade.service)"
    answer = interrupt_while_dumping(untouched, (*BOTH, "--cgroup", ballast), kill)
    assert answer.status == ExitStatus.FAILED, answer
    assert "killed" in answer.error["message"]
    before = untouched.shell("cat /run/ballast")
    untouched.wait(f"test $(cat /run/ballast) -gt {before}")
