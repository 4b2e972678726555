# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.dump.peers`` on images that pycriu wrote."""

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from pycriu import images

from upgrade.dump import peers

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # pycriu under protobuf 6

ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LISTEN = 1, 4, 5, 8, 10
FOWN = {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}
OPTIONS = {"so_sndbuf": 1, "so_rcvbuf": 1, "so_snd_tmo_sec": 0, "so_snd_tmo_usec": 0} | {
    "so_rcv_tmo_sec": 0,
    "so_rcv_tmo_usec": 0,
}


def words(family: int, address: str) -> list[int]:
    """Return an address as CRIU keeps it: the bytes of the network in words of the machine."""
    data = socket.inet_pton(family, address)
    return list(struct.unpack(f"={len(data) // 4}I", data))


def inet(number: int, **changes: Any) -> dict[str, Any]:
    family = changes.get("family", socket.AF_INET)
    own, other = ("10.0.0.1", "10.0.0.9") if family == socket.AF_INET else ("2001:db8::1", "2001:db8::9")
    entry = {
        "id": number,
        "ino": 0xABC0 + number,
        "family": int(family),
        "type": int(socket.SOCK_STREAM),
        "proto": socket.IPPROTO_TCP,
        "state": ESTABLISHED,
        "src_port": 6379,
        "dst_port": 40000 + number,
        "flags": 0,
        "backlog": 0,
        "src_addr": words(family, own),
        "dst_addr": words(family, other),
        "fown": FOWN,
        "opts": OPTIONS,
    }
    return {"type": "INETSK", "id": number, "isk": entry | changes}


def write(directory: Path, files: list[dict[str, Any]], streams: dict[int, int]) -> None:
    with (directory / "files.img").open("wb") as f:
        images.dump({"magic": "FILES", "entries": files}, f)
    for number, sequence in streams.items():
        stream = {
            "inq_len": 0,
            "inq_seq": sequence,
            "outq_len": 0,
            "outq_seq": 1,
            "opt_mask": 0,
            "snd_wscale": 7,
            "mss_clamp": 1460,
            "extra": {"inq": "", "outq": ""},
        }
        with (directory / f"tcp-stream-{0xABC0 + number:x}.img").open("wb") as f:
            images.dump({"magic": "TCP_STREAM", "entries": [stream]}, f)


def test_established_connections_are_found(tmp_path: Path) -> None:
    write(tmp_path, [inet(1), inet(2)], {1: 0xFFFFFFFF, 2: 0})
    found = peers.of_images(tmp_path)
    assert [dict(peer) for peer in found] == [
        {"local": ("10.0.0.1", 6379), "remote": ("10.0.0.9", 40001), "expected": 0xFFFFFFFF},
        {"local": ("10.0.0.1", 6379), "remote": ("10.0.0.9", 40002), "expected": 0},
    ]
    assert json.loads(json.dumps(found))[0]["local"] == ["10.0.0.1", 6379]


@pytest.mark.parametrize("state", [FIN_WAIT1, FIN_WAIT2])
def test_who_still_sends_after_our_end_is_found(tmp_path: Path, state: int) -> None:
    write(tmp_path, [inet(1, state=state)], {1: 77})
    assert [peer["expected"] for peer in peers.of_images(tmp_path)] == [77]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": LISTEN},
        {"state": CLOSE_WAIT},
        {"proto": socket.IPPROTO_UDP},
        {"family": int(socket.AF_INET6)},
    ],
)
def test_others_are_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    regular = {"type": "REG", "id": 9, "reg": {"id": 9, "flags": 0, "pos": 0, "fown": FOWN, "name": "/x"}}
    write(tmp_path, [regular, inet(1, **changes), inet(2)], {1: 5, 2: 6})
    assert [peer["expected"] for peer in peers.of_images(tmp_path)] == [6]


def test_a_connection_whose_stream_is_missing_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, [inet(1), inet(2)], {2: 6})
    assert [peer["expected"] for peer in peers.of_images(tmp_path)] == [6]


def test_no_files_are_no_peers(tmp_path: Path) -> None:
    assert peers.of_images(tmp_path) == ()
