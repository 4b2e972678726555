# SPDX-License-Identifier: MIT
"""What machine to boot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from upgrade.rehearse.image import Image
from upgrade.rehearse.kernels import Kernel
from upgrade.rehearse.layout import Layout


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What machine to boot; memory is given in MiB.

    :param memory_mib: what the kernel may use as it likes; the reserved ranges come on top
    :param store_mib: the first reserved range, at 4 GiB; 0 for none
    :param frames_mib: the second one, behind it
    :param frames_ranges: divided into so many
    :param append: more kernel arguments
    :param ports: what clients outside want to reach, for where there is no real network
    :param seed: what the read-only disk holds, and where
    :param repeatable: time in the guest counts instructions; there is one processor then
    :param disk: boot from this disk, with the boot loader on it, instead of being given the kernel by QEMU; the
        ranges and ``append`` are the boot loader's business then
    :param keep: do not end the machine, not even when this process ends
    """

    image: Image
    kernel: Kernel
    memory_mib: int = 3072
    store_mib: int = 1024
    frames_mib: int = 0
    frames_ranges: int = 1
    cpus: int = 2
    append: str = ""
    ports: tuple[int, ...] = ()
    seed: Mapping[str, Path] = field(default_factory=dict)
    repeatable: bool = False
    disk: Path | None = None
    keep: bool = False

    @property
    def layout(self) -> Layout:
        """Where the guest's memory lies."""
        return Layout(self.memory_mib, self.store_mib, self.frames_mib, self.frames_ranges)
