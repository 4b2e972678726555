# SPDX-License-Identifier: MIT
"""A session with something in every member."""

from collections.abc import Mapping, Sequence
from typing import Any

from memfs.checksums import Sum
from upgrade.clock import Tie
from upgrade.engines.base import Container
from upgrade.netconf import Link
from upgrade.session import Dumped, Session

HERTZ = 2_000_000_000
TIES = (Tie(1_000, 0, 10**18, 80), Tie(1_000 + 100 * HERTZ, 100 * 10**9, 10**18 + 100 * 10**9, 120))
STAMPS = {"freeze": 10, "frozen": 20, "dumped": 30, "captured": 40, "quiesced": 50}
STAMPS_S = {name: TIES[-1].tsc + second * HERTZ for name, second in STAMPS.items()}


def container(name: str = "/workload/redis", engine: str = "cgroup", **data: Any) -> Container:
    """Return a container in the host's namespaces."""
    return Container(name, engine, name, 500, host_pids=True, host_network=True, data=data)


def dumped(one: Container | None = None, number: int = 0, **members: Any) -> Dumped:
    """Return a dumped container."""
    return Dumped(
        one or container(),
        directory=f"container-{number}",
        **{
            "tasks": 2,
            "threads": 5,
            "threads_in_vdso": 1,
            "vdso_action": "thawed and frozen again 1 time until none was inside",
            "frozen_at": STAMPS_S["freeze"],
            "peers": ({"local": ["10.0.0.1", 80], "remote": ["10.0.0.9", 4711], "expected": 77},),
            "checksums": {"inventory.img": Sum(7, "ab" * 16)},
            **members,
        },
    )


def session(containers: Sequence[Dumped] | None = None, **members: Any) -> Session:
    """Return a session."""
    values: Mapping[str, Any] = {
        "id": "20261122T103512Z-abcdef",
        "host": "host7",
        "kernel_from": "6.12.48+deb13-cloud-amd64",
        "kernel_to": "6.12.57+deb13-cloud-amd64",
        "command_line_from": "root=/dev/vda1 memmap=256M!4G",
        "command_line_to": "root=/dev/vda1 memmap=256M!4G seamless_upgrade.session=20261122T103512Z-abcdef",
        "boot_id": "11111111-2222-3333-4444-555555555555",
        "criu_version": "4.1.1",
        "started_at": "2026-11-22T10:35:12+00:00",
        "taint_before": 0,
        "livepatches_before": ("kpatch_1",),
        "store_start_bytes": 4 << 30,
        "store_size_bytes": 256 << 20,
        "last_pid": 900,
        "lock": "table inet seamless_upgrade {\n}\n",
        "links": (
            Link(
                "eth0",
                "52:54:00:12:34:56",
                1500,
                "virtio_net",
                ("10.0.0.1/24",),
                ("-4 default via 10.0.0.9",),
            ),
        ),
        "containers": tuple(containers if containers is not None else (dumped(),)),
        "stamps": STAMPS_S,
        "ties": TIES,
        "vdso": {},
        "warnings": ("/boot (vfat) cannot be frozen; it was only synced",),
        **members,
    }
    return Session(**values)
