# SPDX-License-Identifier: MIT
"""The peers of dumped TCP connections, read from CRIU's images: whom to nudge after the restore."""

import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# include/net/tcp_states.h: those in which the peer may still send. After its end (CLOSE_WAIT) it waits for nothing.
SENDING = (1, 4, 5)
SENDING_NAMES = ("ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2")


def prepare() -> None:
    """Import what :func:`of_images` needs, before it is downtime."""
    from pycriu import images  # noqa: F401


def of_images(directory: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the IPv4 connections of a dump whose peer may send: ``local``, ``remote``, the next byte ``expected``."""
    from pycriu import images  # heavy: not for the new kernel's path

    files = directory / "files.img"
    if not files.exists():
        return ()
    with files.open("rb") as f:
        sockets = [entry["isk"] for entry in images.load(f)["entries"] if "isk" in entry]
    found = []
    for entry in sockets:
        stream = directory / f"tcp-stream-{entry['ino']:x}.img"
        if _may_receive(entry) and stream.exists():
            with stream.open("rb") as f:
                expected = images.load(f)["entries"][0]["inq_seq"]
            found.append(
                {
                    "local": (_address(entry["src_addr"]), entry["src_port"]),
                    "remote": (_address(entry["dst_addr"]), entry["dst_port"]),
                    "expected": expected,
                }
            )
    return tuple(found)


def _may_receive(entry: Mapping[str, Any]) -> bool:
    right = entry["family"] in (socket.AF_INET, "INET") and entry["proto"] in (socket.IPPROTO_TCP, "TCP")
    return right and entry["state"] in (*SENDING, *SENDING_NAMES)


def _address(words: list[int] | list[str]) -> str:
    word = words[0]
    return word if isinstance(word, str) else socket.inet_ntoa(struct.pack("=I", word))
