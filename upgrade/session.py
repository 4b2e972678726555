# SPDX-License-Identifier: MIT
"""The record of one upgrade: what the old kernel tells the new one.

It lies on range M with a checksum of its own. A copy of its beginning, the *plan*, lies below
``/var/lib/seamless-upgrade``, so that the containers can be started from cold even if M was lost.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from memfs import checksums
from memfs.checksums import Sum
from memfs.ranges import Range
from upgrade.clock import Tie
from upgrade.engines.base import Container
from upgrade.netconf import Link

FORMAT = 2
FILE = "session.json"
FRAMES_FILE = "frames"
SAMPLES_FILE = "samples"
JUMP_FILE = "jump"


class SessionDamaged(Exception):
    """The record cannot be believed; the text says why."""


@dataclass(frozen=True, slots=True)
class Dumped:
    """A container in its images."""

    container: Container
    directory: str  # below the store
    tasks: int = 0
    threads: int = 0
    threads_in_vdso: int = 0
    vdso_action: str = ""
    frozen_at: int = 0  # TSC
    peers: tuple[Mapping[str, Any], ...] = ()
    """The other ends of its connections, with the addresses that they see."""
    flows: tuple[Mapping[str, Any], ...] = ()
    """Its connections that the host translates."""
    checksums: Mapping[str, Sum] = field(default_factory=dict)
    in_place: bool = False
    """Its page frames stay where they are."""
    frame_files: tuple[str, ...] = ()
    """The names of its images that are files of the frame map."""
    pages: int = 0
    """Its pages in the frame map."""
    shared_pages: int = 0
    """So many of them are there already for another of its processes: fork(2) shares them."""
    stragglers: int = 0
    """Pages of the frame map that had to be copied."""


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """The frame map: the ranges it is about (the first one begins with it), the checksums of its file and of the
    digests of what lies in the frames."""

    spans: tuple[Range, ...]
    file: Sum
    samples: Sum


@dataclass(frozen=True, slots=True)
class Session:
    """Everything known of an upgrade before the jump. Times are TSC values unless their names say otherwise."""

    id: str
    host: str
    kernel_from: str
    kernel_to: str
    command_line_from: str
    command_line_to: str
    boot_id: str
    criu_version: str
    started_at: str
    taint_before: int
    livepatches_before: tuple[str, ...]
    store_start_bytes: int
    store_size_bytes: int
    last_pid: int
    lock: str = ""
    links: tuple[Link, ...] = ()
    containers: tuple[Dumped, ...] = ()
    stamps: Mapping[str, int] = field(default_factory=dict)
    ties: tuple[Tie, ...] = ()
    restore_timeout_seconds: float = 300.0
    vdso: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    frames: FrameRecord | None = None
    restore: str = "auto"
    verify: str = "sample"
    clocks: str = "pause"
    gathering: Mapping[str, Any] = field(default_factory=dict)
    """What moving pages into the ranges cost, if any were moved."""
    format: int = FORMAT

    def save(self, file: Path) -> None:
        """Write the record so that it is whole or not there at all."""
        text = json.dumps(asdict(self))
        temporary = file.with_name(f".{file.name}.new")
        with temporary.open("w") as f:
            f.write(f"{checksums.of_bytes(text.encode())}\n{text}\n")
            f.flush()
            os.fsync(f.fileno())
        temporary.rename(file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a record.

        :raises SessionDamaged: if it is missing, damaged or of another format
        """
        try:
            digest, _, text = file.read_text().partition("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise SessionDamaged(f"cannot read the session record: {e}") from e
        if checksums.of_bytes(text.rstrip("\n").encode()) != digest:
            raise SessionDamaged("the session record is damaged (its checksum differs)")
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise SessionDamaged(f"the session record has format {data['format']}, not {FORMAT}")
            return cls(**_rebuild(data))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise SessionDamaged(f"the session record is of another version: {e!r}") from e


def _rebuild(data: dict[str, Any]) -> dict[str, Any]:
    return {
        **data,
        "livepatches_before": tuple(data["livepatches_before"]),
        "links": tuple(
            Link(**{**link, "addresses": tuple(link["addresses"]), "routes": tuple(link["routes"])})
            for link in data["links"]
        ),
        "containers": tuple(_dumped(entry) for entry in data["containers"]),
        "ties": tuple(Tie(**tie) for tie in data["ties"]),
        "warnings": tuple(data["warnings"]),
        "frames": _frames(data["frames"]),
    }


def _frames(entry: dict[str, Any] | None) -> FrameRecord | None:
    if entry is None:
        return None
    return FrameRecord(
        tuple(Range(**span) for span in entry["spans"]), Sum(**entry["file"]), Sum(**entry["samples"])
    )


def _container(entry: dict[str, Any]) -> Container:
    named = {**entry, "addresses": tuple(entry["addresses"]), "published": tuple(entry["published"])}
    return Container(**named)


def _dumped(entry: dict[str, Any]) -> Dumped:
    return Dumped(
        **{
            **entry,
            "container": _container(entry["container"]),
            "peers": tuple(entry["peers"]),
            "flows": tuple(entry["flows"]),
            "frame_files": tuple(entry["frame_files"]),
            "checksums": {name: Sum(**value) for name, value in entry["checksums"].items()},
        }
    )
