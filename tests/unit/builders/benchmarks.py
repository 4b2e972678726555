# SPDX-License-Identifier: MIT
"""Results of benchmarks that nobody measured."""

from upgrade.bench.matrix import BY_NAME, DEFAULT_MODES, Way
from upgrade.bench.model import MIB, Cell, Result, Row
from upgrade.report.model import Phase

FLOOR_SECONDS = 4.3
# mode: seconds without memory, seconds a GiB, phases before the jump and after it (parts of what is left)
MODES = {
    "in-place-lazy": (6.6, 0.05, 0.3),
    "in-place-eager": (6.7, 0.9, 0.3),
    "copy": (6.6, 2.1, 0.5),
    "images": (7.4, 3.2, 0.5),
    "kexec": (12.0, 0.7, 0.1),
    "reboot": (21.0, 0.7, 0.3),
}


def cell(mode: str, number: int, total_mib: int) -> Cell:
    """Return a cell whose downtime is on a straight line, 1 % more each round."""
    base, more, before = MODES[mode]
    seconds = (base + more * total_mib / 1024) * (1 + number / 100)
    way = BY_NAME[mode].way
    rest = seconds - FLOOR_SECONDS
    names = {
        Way.PRODUCT: ("dump", "jump", "userspace to restore", "restore"),
        Way.IMAGES: ("dump", "jump", "userspace to restore", "restore"),
        Way.KEXEC: ("stop", "jump", "userspace to start", "start"),
        Way.REBOOT: ("shutdown", "reset", "userspace to start", "start"),
    }[way]
    phases = (
        Phase(names[0], rest * before),
        Phase(names[1], 0.4),
        Phase("kernel boot to first userspace", FLOOR_SECONDS - 0.4),
        Phase(names[2], rest * (1 - before) * 0.4),
        Phase(names[3], rest * (1 - before) * 0.6),
    )
    copied = total_mib * MIB if mode in ("copy", "images") else 0
    return Cell(
        mode=mode,
        round=number,
        downtime_seconds=seconds,
        container_seconds=(seconds,),
        outside_seconds=seconds * 1.9,
        floor_seconds=FLOOR_SECONDS + number / 100 if way is Way.KEXEC else None,
        phases=phases,
        bytes_copied=copied,
        store_bytes=copied,
        extra_bytes=64 * MIB,
        wall_seconds=60.0,
    )


def result(
    memory: tuple[int, ...] = (64, 256, 1024, 2048), containers: tuple[int, ...] = (1, 4), rounds: int = 3
) -> Result:
    """Return a whole result."""
    rows = []
    for mib in memory:
        for count in containers:
            row = Row(mib, count)
            for number in range(1, rounds + 1):
                row.cells += [cell(mode, number, mib * count) for mode in DEFAULT_MODES]
            rows.append(row)
    return Result(
        kernel_from="6.12.107+deb13-cloud-amd64",
        kernel_to="6.12.107+deb13-cloud-amd64",
        modes=DEFAULT_MODES,
        rounds=rounds,
        clock="instructions",
        accelerator="tcg",
        started_at="2026-11-22T14:00:00+00:00",
        versions={"seamless_upgrade": "0.1.0", "criu": "Version: 4.1.1"},
        rows=rows,
    )
