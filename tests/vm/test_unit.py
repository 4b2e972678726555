# SPDX-License-Identifier: MIT
"""Services of systemd: kernels are replaced under them, twice, and systemd does not notice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.vm.conftest import REPOSITORY, Guest, Guests

SERVICE = Path(__file__).with_name("service.py")
SCHEMA = json.loads((REPOSITORY / "upgrade/report/schema.json").read_text())
START = "ExecStart=/usr/bin/python3 /opt/service.py"
INSTALL = "[Install]\nWantedBy=multi-user.target\n"
UNITS = {
    "web.service": f"[Service]\n{START} web 7001\nRestart=on-failure\n{INSTALL}",
    "pulse.service": f"""[Service]
Type=notify
{START} pulse 7002
WatchdogSec=60
Restart=always
User=nobody
NoNewPrivileges=yes
SystemCallFilter=@system-service
{INSTALL}""",
    "daemon.service": f"[Service]\nType=forking\nPIDFile=/run/daemon.pid\n{START} daemon\n",
    "shelf.service": f"[Service]\n{START} shelf 7003\nRuntimeDirectory=shelf\n{INSTALL}",
    "plug.socket": "[Socket]\nListenStream=/run/plug.socket\n[Install]\nWantedBy=sockets.target\n",
    "plug.service": f"[Service]\n{START} plug\n",
    "victim.service": f"[Service]\n{START} victim 7004\n{INSTALL}",
    # In the new kernel a file that it has open is no longer what it was: CRIU refuses to restore.
    "spoil.service": """[Unit]
DefaultDependencies=no
After=systemd-remount-fs.service
Before=seamless-upgrade-restore.service
ConditionKernelCommandLine=seamless_upgrade.session
ConditionPathExists=/var/lib/spoil
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo more >> /var/lib/victim'
[Install]
WantedBy=sysinit.target
""",
    "boxed.service": f"[Service]\n{START} boxed 7005\nPrivateTmp=yes\nProtectSystem=full\n",
}
KEPT = ("web", "pulse", "daemon", "shelf")
ADDRESSES = {"web": 7001, "pulse": 7002, "shelf": 7003}
ASK = """import json, socket, sys
where = json.loads(sys.argv[1])
s = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
s.settimeout(20)
s.connect(where if isinstance(where, str) else ("127.0.0.1", where))
s.send(b"?")
print(s.recv(1000).decode())
"""
PROPERTIES = "ActiveState,SubState,MainPID,NRestarts,Result,Type,DropInPaths,Restart,ExecStart"


@pytest.fixture(scope="module")
def guest(guests: Guests) -> Iterator[Guest]:
    """Return a guest in which the services run."""
    for guest in guests.boot(store_mib=256, frames_mib=512):
        guest.machine.put("/opt/service.py", SERVICE.read_bytes())
        guest.machine.put("/opt/ask.py", ASK.encode())
        for name, text in UNITS.items():
            guest.machine.put(f"/etc/systemd/system/{name}", text.encode())
        guest.shell(
            "touch /var/lib/spoil; mkdir -p /var/log/journal; systemctl daemon-reload; journalctl --flush;"
            " systemctl enable -q web pulse shelf victim spoil;"
            " systemctl start web pulse daemon shelf victim"
        )
        guest.wait("test $(wc -l < /var/log/daemon) -gt 20")
        yield guest


def ask(guest: Guest, name: str) -> dict[str, Any]:
    """Return what a service says of itself."""
    found: dict[str, Any] = json.loads(
        guest.shell(f"python3 /opt/ask.py '{json.dumps(ADDRESSES[name])}'").strip()
    )
    return found


def shown(guest: Guest, name: str) -> dict[str, str]:
    """Return what systemd knows of a service, as far as it should be the same for ever."""
    lines = guest.shell(f"systemctl show -p {PROPERTIES} {name}").splitlines()
    found = dict(line.partition("=")[::2] for line in lines)
    found["ExecStart"] = found["ExecStart"].partition(" ; start_time=")[0]
    return found


def counted(guest: Guest, name: str) -> list[int]:
    """Return what a service has counted, as the journal has it; forks and restarts would begin anew."""
    words = f"journalctl -q --no-pager -o cat _SYSTEMD_UNIT={name}.service"
    lines = guest.shell("cat /var/log/daemon" if name == "daemon" else words).splitlines()
    return [int(line.rpartition(" ")[2]) for line in lines if f"{name} counts" in line]


@pytest.fixture(scope="module")
def upgraded(guest: Guest) -> dict[str, Any]:
    """Upgrade; return what was before, what is then, and the report."""
    names = [word for name in (*KEPT, "victim") for word in ("--unit", name)]
    before = {name: shown(guest, name) for name in (*KEPT, "victim")}
    counts = {name: ask(guest, name)["count"] for name in ADDRESSES}
    guest.jump(guest.kernels[1].release, *names)
    guest.wait("test $(systemctl show -P SubState seamless-upgrade-restore) = exited")
    guest.wait("systemctl is-active victim")
    report = guest.command("report", "--json").json
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    return {"before": before, "counts": counts, "report": report}


def test_systemd_takes_them_for_what_they_were(guest: Guest, upgraded: dict[str, Any]) -> None:
    outcomes = {c["name"]: (c["engine"], c["outcome"]) for c in upgraded["report"]["containers"]}
    assert outcomes == {
        **{f"{name}.service": ("unit", "restored") for name in KEPT},
        "victim.service": ("unit", "cold-started"),
    }, upgraded["report"]
    for name in KEPT:
        assert shown(guest, name) == upgraded["before"][name]
    assert "var/lib/victim" in next(
        c["reason"] for c in upgraded["report"]["containers"] if c["name"] == "victim.service"
    )


def test_they_go_on_counting(guest: Guest, upgraded: dict[str, Any]) -> None:
    for name in ADDRESSES:
        says = ask(guest, name)
        assert str(says["pid"]) == upgraded["before"][name]["MainPID"]
        assert says["count"] > upgraded["counts"][name]
    assert ask(guest, "shelf")["memory"] == "written"
    assert guest.shell("cat /run/shelf/lock") == "locked"
    assert guest.shell("cat /run/daemon.pid").strip() == upgraded["before"]["daemon"]["MainPID"]


def test_the_journal_goes_on(guest: Guest, upgraded: dict[str, Any]) -> None:
    for name in KEPT:
        counts = counted(guest, name)
        assert counts == sorted(counts), f"{name} began anew"
        assert counts[0] < 20
        assert counts[-1] > upgraded["counts"].get(name, 20)
        assert counts[-1] - counts[0] - len(counts) < 20, f"{name}: lines are missing"


def test_a_service_that_cannot_be_restored_is_started_by_systemd(
    guest: Guest, upgraded: dict[str, Any]
) -> None:
    now, before = shown(guest, "victim"), upgraded["before"]["victim"]
    assert (now["ActiveState"], now["Type"], now["ExecStart"]) == ("active", "simple", before["ExecStart"])
    assert now["MainPID"] != before["MainPID"]


def test_nothing_is_left(guest: Guest, upgraded: dict[str, Any]) -> None:
    assert guest.shell("find /run/systemd /var/lib/seamless-upgrade -name '*seamless-upgrade.conf'") == ""
    assert guest.shell("ls /var/lib/seamless-upgrade/units") == ""
    assert guest.shell("find /run -name '*.seamless-upgrade'") == ""
    log = guest.shell("journalctl -b -u seamless-upgrade-restore --no-pager")
    assert "drop-in was not generated" not in log


def test_what_stands_against_it_is_named(guest: Guest) -> None:
    guest.shell("systemctl start plug.socket boxed; systemctl start plug")
    said = guest.command("check", "--json", "--only", "containers.found", "--unit", "boxed")
    assert said.error["message"].endswith("because of PrivateTmp=yes, ProtectSystem=full")
    said = guest.command("check", "--json", "--only", "containers.found", "--unit", "plug")
    assert "plug.socket" in said.error["message"]


def test_they_can_be_taken_along_once_more(guest: Guest, upgraded: dict[str, Any]) -> None:
    guest.shell("rm /var/lib/spoil")
    before = {name: shown(guest, name) for name in (*KEPT, "victim")}
    guest.jump(guest.kernels[0].release, *(word for name in before for word in ("--unit", name)))
    guest.wait("test $(systemctl show -P SubState seamless-upgrade-restore) = exited")
    report = guest.command("report", "--json").json
    assert report["outcome"] == "upgraded", report["containers"]
    assert {name: shown(guest, name) for name in before} == before
    for name in ADDRESSES:
        assert str(ask(guest, name)["pid"]) == before[name]["MainPID"]


def test_restart_watchdog_and_stop_work(guest: Guest, upgraded: dict[str, Any]) -> None:
    pids = {name: shown(guest, name)["MainPID"] for name in KEPT}
    guest.shell(f"kill -KILL {pids['web']}; kill -STOP {pids['pulse']}")
    guest.wait(
        f"test $(systemctl show -P MainPID web) -gt 0 -a $(systemctl show -P MainPID web) != {pids['web']}"
    )
    assert shown(guest, "web") == {
        **upgraded["before"]["web"],
        "MainPID": shown(guest, "web")["MainPID"],
        "NRestarts": "1",
    }
    guest.wait("test $(systemctl show -P NRestarts pulse) = 1", 300)  # its watchdog
    guest.shell("systemctl stop daemon shelf")
    assert guest.shell("systemctl is-active daemon shelf || true").split() == ["inactive", "inactive"]
    assert guest.shell(f"ls -d /proc/{pids['daemon']} /proc/{pids['shelf']} 2>/dev/null || true") == ""
