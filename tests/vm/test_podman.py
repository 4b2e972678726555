# SPDX-License-Identifier: MIT
"""podman's containers go through upgrades, and podman finds them as it left them; docker's are started anew."""

import json
import os
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.vm.conftest import PATIENCE_S, WORKLOADS, Guest, Guests
from tests.vm.test_rollback import HERE, end_task, start_task
from tests.vm.test_upgrade import SCHEMA, gap
from upgrade.errors import ExitStatus
from upgrade.rehearse.rehearsal import Options, rehearse

NAME = "podman-web"
# more for a longer look, to and fro: SEAMLESS_UPGRADE_ROUNDS=2
ROUNDS = int(os.environ.get("SEAMLESS_UPGRADE_ROUNDS", 1))
KINDS = "/root/kinds"


@pytest.fixture(scope="module")
def upgraded() -> dict[str, Any]:
    """Return the result of upgrades with a client on the published port, frames in place."""
    return rehearse(Options("trixie", "trixie-security", (WORKLOADS / NAME,), rounds=ROUNDS), print)


def test_it_comes_back_with_its_frames_in_place(upgraded: dict[str, Any]) -> None:
    assert upgraded["outcome"] == "passed", upgraded["error"]
    assert len(upgraded["rounds"]) == ROUNDS
    for done in upgraded["rounds"]:
        report = done["report"]
        jsonschema.Draft202012Validator(SCHEMA).validate(report)
        assert report["outcome"] == "upgraded", report["reason"]
        (container,) = report["containers"]
        assert (container["name"], container["engine"], container["outcome"]) == ("web", "podman", "restored")
        assert report["pages_total"] > 8000
        assert report["pages_copied"] < 0.05 * report["pages_total"]
        assert done["verify"][NAME]["exit_status"] == 0, done["verify"][NAME]["output"]


def test_a_connection_to_the_published_port_lives_on(upgraded: dict[str, Any]) -> None:
    seen = gap(upgraded, NAME)
    assert seen["errors"] == []
    assert seen["replies"] == seen["requests"] > 20


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """A machine without a range for frames: pages are copied. docker runs, too."""
    for guest in guests.boot([NAME], packages=["docker.io", "docker-cli"]):
        # docker comes after the network is online, which nobody says of a network that was set up by hand
        guest.shell(
            "systemctl mask --now systemd-networkd-wait-online.service; systemctl start docker.service;"
            "mkdir -m 1777 -p /root/docker/tmp; cd /root/docker; mkdir -p usr proc sys dev etc run var data;"
            "for name in bin lib lib64 sbin; do ln -s usr/$name $name; done;"
            "tar -c . | docker import - nothing"
        )
        for name, policy in (("db", "no"), ("front", "unless-stopped")):
            guest.shell(
                f"docker run --detach --name {name} --restart {policy} --volume /usr:/usr:ro nothing"
                " /usr/bin/python3 -c 'import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit());"
                " signal.pause()'"
            )
        yield guest


def docker(guest: Guest) -> dict[str, dict[str, Any]]:
    """Return the state of docker's containers that run, by name."""
    states = guest.shell("docker inspect --format '{{json .}}' $(docker ps --quiet)").splitlines()
    return {each["Name"].lstrip("/"): each["State"] for each in map(json.loads, states)}


def test_what_docker_runs_is_refused_unless_it_may_be_stopped(guest: Guest) -> None:
    for words, subject in ((["--all"], "docker: db, front"), (["--container", "db"], "db")):
        answer = guest.upgrade(*words)
        assert (answer.status, answer.error["subject"]) == (ExitStatus.REFUSED, subject), answer
        assert "--cold docker" in answer.error["hint"]


def test_what_cannot_come_back_is_refused(guest: Guest) -> None:
    run = "podman run -d --volume /usr:/usr:ro"
    guest.shell(f"{run} --name entered localhost/podman-web /usr/bin/sleep 9999")
    guest.shell(
        f"{run} --uidmap 0:100000:65536 --gidmap 0:100000:65536 --name apart localhost/podman-web /usr/bin/sleep 9999"
    )
    guest.shell("podman exec -d entered /usr/bin/sleep 9999")
    for name, reason in (("entered", "podman exec"), ("apart", "user namespace")):
        answer = guest.upgrade("--container", name)
        assert (answer.status, answer.error["subject"]) == (ExitStatus.REFUSED, name), answer
        assert reason in answer.error["message"]
        assert answer.error["hint"]
    assert "web (podman)" in guest.upgrade("--container", "none").error["hint"]
    guest.shell("podman rm --force --time 0 entered apart")


def test_an_upgrade_that_fails_leaves_it_as_it_was(guest: Guest) -> None:
    cgroup = "/workload/uring"  # CRIU cannot dump its task
    start_task(guest, "io_uring.py", cgroup)
    guest.wait(f"ls -l /proc/$(cat /sys/fs/cgroup{cgroup}/cgroup.procs)/fd | grep -q io_uring")
    before = docker(guest)
    answer = guest.upgrade(
        "--all", "--cold", "docker", "--cgroup", cgroup, "--skip", "containers.descriptors"
    )
    end_task(guest, cgroup)
    assert (answer.status, answer.error["subject"]) == (ExitStatus.FAILED, cgroup), answer
    assert guest.verify(NAME) == {}
    now = docker(guest)
    assert now.keys() == before.keys()  # stopped, and started again
    assert all(now[name]["StartedAt"] > before[name]["StartedAt"] for name in now)


def kinds(guest: Guest, command: str) -> str:
    """Return what podman_kinds.sh says of the other kinds of containers if something is wrong with them."""
    done = guest.machine.run([f"{KINDS}/podman_kinds.sh", command], timeout=PATIENCE_S, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_podman_goes_on_with_it(guest: Guest) -> None:
    for name in ("podman_kinds.sh", "podman_kinds.py"):
        guest.machine.put(f"{KINDS}/{name}", (HERE / name).read_bytes(), 0o755)
    assert kinds(guest, "start") == ""
    guest.jump(guest.kernels[1].release, "--all", "--cold", "docker")
    status = guest.command("status", "--wait")  # the boot goes on before podman can restore
    assert status.status == ExitStatus.DONE, status
    assert guest.verify(NAME) == {}
    guest.shell("podman exec web /usr/bin/true")
    guest.shell("podman stop --time 1 web")
    assert guest.shell("podman inspect --format '{{.State.Status}} {{.State.ExitCode}}' web").split() == [
        "exited",
        "137",  # Python as the init of a PID namespace has no handler for SIGTERM
    ]
    guest.shell("podman start web")
    assert "web" in guest.shell("podman ps --format '{{.Names}}'").split()


def test_docker_s_were_stopped_and_started(guest: Guest) -> None:
    report = json.loads(guest.command("report", "--json").out)
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    assert report["outcome"] == "upgraded", report["reason"]
    found = {c["name"]: c for c in report["containers"] if c["engine"] == "docker"}
    assert {name: c["outcome"] for name, c in found.items()} == {"db": "restarted", "front": "restarted"}
    states = docker(guest)
    assert states.keys() == found.keys()
    for name, container in found.items():
        assert container["downtime_seconds"] > report["downtime_seconds"]
        assert report["started_at"] < states[name]["FinishedAt"] < states[name]["StartedAt"]
    assert guest.shell("ls /var/lib/seamless-upgrade").split().count("cold.json") == 0


def test_other_kinds_are_back(guest: Guest) -> None:
    """With --rm, with a terminal, of Quadlet, in a pod: they went through the same upgrade."""
    assert kinds(guest, "verify") == ""
    assert kinds(guest, "end") == ""
    assert guest.shell("podman ps --all --format '{{.Names}}'").split() == ["web"]
