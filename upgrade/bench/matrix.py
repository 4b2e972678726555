# SPDX-License-Identifier: MIT
"""Which cells there are: modes, sizes, rounds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from upgrade.errors import UsageError
from upgrade.host import Host

PAGE_MARGIN_MIB = 64
SYSTEM_MIB = 2048  # what the guest itself needs; less would not fill what QEMU puts below 4 GiB
CONTAINER_MIB = 24  # a ballast's interpreter, its libraries included
LEAST_STORE_MIB = 256


class Way(StrEnum):
    """What leaves the old kernel: the product, or a baseline of ours under this name in the guest."""

    PRODUCT = "product"
    IMAGES = "images"
    KEXEC = "kexec"
    REBOOT = "reboot"
    FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to replace a kernel. ``options`` are given to ``seamless-upgrade run``."""

    name: str
    title: str
    way: Way
    options: tuple[str, ...] = ()
    in_place: bool = False

    @property
    def keeps(self) -> bool:
        """Whether containers go on where they were, instead of being started again."""
        return self.way in (Way.PRODUCT, Way.IMAGES)


MODES = (
    Mode(
        "in-place-lazy",
        "frames in place, lazy",
        Way.PRODUCT,
        ("--pages=in-place", "--restore=lazy"),
        in_place=True,
    ),
    Mode(
        "in-place-eager",
        "frames in place, eager",
        Way.PRODUCT,
        ("--pages=in-place", "--restore=eager"),
        in_place=True,
    ),
    Mode("copy", "copy to memory", Way.PRODUCT, ("--pages=copy", "--restore=eager")),
    Mode("images", "images on disk", Way.IMAGES),
    Mode("kexec", "kexec, cold start", Way.KEXEC),
    Mode("reboot", "reboot, cold start", Way.REBOOT),
    Mode("floor", "bare kexec", Way.FLOOR),
)
BY_NAME = {mode.name: mode for mode in MODES}
# The bare kexec needs no cells of its own where a plain kexec is measured anyway.
DEFAULT_MODES = tuple(mode.name for mode in MODES if mode.way is not Way.FLOOR)


@dataclass(frozen=True, slots=True)
class Matrix:
    """What to measure. ``memory_mib`` is the memory of one container."""

    memory_mib: tuple[int, ...] = (64, 256, 1024, 2048)
    containers: tuple[int, ...] = (1, 4)
    rounds: int = 3
    modes: tuple[str, ...] = DEFAULT_MODES
    most_mib: int = 0

    def __post_init__(self) -> None:
        for option, numbers in (("--memory", self.memory_mib), ("--containers", self.containers)):
            if not numbers or min(numbers) < 1:
                raise UsageError("must be numbers of at least 1", subject=option)
        if self.rounds < 1:
            raise UsageError("must be at least 1", subject="--rounds")
        for name in self.modes:
            if name not in BY_NAME:
                raise UsageError(
                    f"unknown mode {name}", subject="--modes", hint=f"known modes: {', '.join(BY_NAME)}"
                )
        if not self.modes:
            raise UsageError("at least one mode is needed", subject="--modes")

    def rows(self) -> list[tuple[int, int]]:
        """Return memory and number of containers of each row that the machine holds, the smallest first."""
        wanted = {(mib, count) for mib in self.memory_mib for count in self.containers}
        fitting = [
            size for size in wanted if not self.most_mib or self.machine(*size).total_mib <= self.most_mib
        ]
        return sorted(fitting, key=lambda size: (size[0] * size[1], size[1]))

    def left_out(self) -> list[tuple[int, int]]:
        """Return the rows that the machine does not hold."""
        fitting = self.rows()
        return sorted(
            (mib, count)
            for mib in set(self.memory_mib)
            for count in set(self.containers)
            if (mib, count) not in fitting
        )

    def cells(self) -> Iterator[tuple[int, Mode]]:
        """Yield round and mode of each cell of a row: interleaved, each round begins with another mode."""
        chosen = [BY_NAME[name] for name in dict.fromkeys(self.with_floor())]
        for number in range(self.rounds):
            first = number % len(chosen)
            for mode in (*chosen[first:], *chosen[:first]):
                yield number + 1, mode

    def with_floor(self) -> Sequence[str]:
        """Return the modes, with a bare kexec if no other measures it."""
        bare = (Way.KEXEC, Way.FLOOR)
        measured = any(BY_NAME[name].way in bare for name in self.modes)
        return self.modes if measured else (*self.modes, "floor")

    def machine(self, memory_mib: int, count: int) -> "Sizes":
        """Return what the machine of a row must have."""
        held = count * (memory_mib + CONTAINER_MIB)
        in_place = any(BY_NAME[name].in_place for name in self.modes)
        return Sizes(
            # Restored tasks lie in ordinary memory, beside what is left over of the images' page cache.
            ordinary_mib=SYSTEM_MIB + 2 * held,
            store_mib=max(LEAST_STORE_MIB, blocks(held * 11 // 10 + PAGE_MARGIN_MIB)),
            frames_mib=blocks(held * 11 // 10 + 4 * PAGE_MARGIN_MIB) if in_place else 0,
        )


@dataclass(frozen=True, slots=True)
class Sizes:
    """The memory of a machine, as :class:`upgrade.rehearse.spec.MachineSpec` wants it."""

    ordinary_mib: int
    store_mib: int
    frames_mib: int

    @property
    def total_mib(self) -> int:
        """What QEMU takes."""
        return self.ordinary_mib + self.store_mib + self.frames_mib


def blocks(mib: int) -> int:
    """Return ``mib`` rounded up to whole memory blocks of 128 MiB."""
    return -(-mib // 128) * 128


def quick() -> Matrix:
    """Return what fits in CI: one small row, once."""
    return Matrix(memory_mib=(64,), containers=(1,), rounds=1)


def host_mib() -> int:
    """Return how much memory this host has available."""
    return Host().memory()["MemAvailable"] >> 20
