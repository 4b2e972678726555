# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.services.activation``: real sockets, a systemctl that is told what to say."""

import os
import socket
from pathlib import Path

import pytest
from builders.programs import Programs

from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.services import activation


def listening(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket with a name."""
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


def test_unix_sockets_are_handed_over_and_others_refused(programs: Programs) -> None:
    programs.add("systemctl", "printf '/run/a.sock (Stream)\\n/run/b.sock (Datagram)\\n'")
    assert activation.of_service("a.service", ["a.timer", "a.socket"]) == ["a.socket"]
    assert programs.calls() == [["systemctl", "show", "--property=Listen", "--value", "--", "a.socket"]]
    for line in ("[::]:80 (Stream)", "@abstract (Stream)", "/run/fifo (FIFO)"):
        programs.add("systemctl", f"echo '/run/a.sock (Stream)'; echo '{line}'")
        with pytest.raises(Refusal) as caught:
            activation.of_service("a.service", ["a.socket"])
        assert line in caught.value.message
        assert "a.socket" in str(caught.value.hint)
    assert activation.of_service("a.service", []) == []


def test_what_is_listed_and_held_is_found(programs: Programs, tmp_path: Path) -> None:
    pids = [os.getpid()]
    with (
        listening(tmp_path / "a") as one,
        listening(tmp_path / "b", socket.SOCK_DGRAM) as two,
        listening(tmp_path / "c"),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(tmp_path / "a"))
        with one.accept()[0]:  # has its name, too
            assert activation.listeners(Host(), pids, []) == {}
            programs.add("systemctl", f"printf '{tmp_path}/a (Stream)\\n{tmp_path}/b (Datagram)\\n'")
            expected = {os.fstat(s.fileno()).st_ino: f"{tmp_path}/{n}" for s, n in ((one, "a"), (two, "b"))}
            assert activation.listeners(Host(), pids, ["a.socket"]) == expected
            assert activation.listeners(Host(), [], ["a.socket"]) == {}


def test_what_systemd_handed_over_is_for_this_process_only() -> None:
    own = str(os.getpid())
    assert list(activation.handed_over({"LISTEN_PID": own, "LISTEN_FDS": "2"})) == [3, 4]
    assert list(activation.handed_over({"LISTEN_PID": "1", "LISTEN_FDS": "2"})) == []
    assert list(activation.handed_over({})) == []


def test_the_new_socket_takes_the_old_ones_place(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as one, socket.socket() as other:
        found = activation.matching({"77": f"{tmp_path}/a"}, [other.fileno(), one.fileno()])
        assert found.keys() == {"socket:[77]"}
        (number,) = found.values()
        assert os.fstat(number).st_ino == os.fstat(one.fileno()).st_ino
        assert number != one.fileno()
        os.close(number)
        with pytest.raises(UpgradeError, match="did not open it"):
            activation.matching({"77": f"{tmp_path}/missing"}, [one.fileno()])


def test_a_socket_keeps_its_name_whoever_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with listening(path) as one:
        (tmp_path / f"a{activation.KEPT}").write_text("left by a process that died")
        with activation.kept([str(path), str(path)]):
            path.unlink()
        assert [each.name for each in tmp_path.iterdir()] == ["a"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            one.accept()[0].close()
