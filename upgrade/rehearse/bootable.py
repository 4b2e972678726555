# SPDX-License-Identifier: MIT
"""A disk that boots by itself: SeaBIOS, GRUB in the gap before the first partition, and the guest's root in it.

GRUB comes from the guest's own packages and is put together with their ``grub-mkimage``, in the way of
``grub-install``: ``boot.img`` goes to the first sector, the core image to the sectors behind it, where both look for
each other by default. Its modules are read from the package's directory. Until somebody has made a ``grub.cfg`` GRUB
boots one kernel with what the image needs.
"""

import os
import struct
import tempfile
from pathlib import Path

from upgrade.process import run
from upgrade.rehearse import userland
from upgrade.rehearse.cache import Cache, digest
from upgrade.rehearse.guest import ROOT_LABEL
from upgrade.rehearse.image import Image, as_root
from upgrade.rehearse.kernels import Kernel

PACKAGES = ("grub-common", "grub2-common", "grub-pc-bin")
SECTOR = 512
GAP_BYTES = 1 << 20
CODE_BYTES = 440  # of the first sector; the table of partitions is behind it
LINUX_PARTITION = 0x83
SCRIPT = Path(__file__).with_name("grub.sh")
MODULES = ("biosdisk", "part_msdos", "ext2", "memdisk", "tar", "normal", "test", "configfile", "linux")
BUILD_TIMEOUT_SECONDS = 600

FIRST_CONFIG = """\
if [ -e /boot/grub/grub.cfg ]; then
    configfile /boot/grub/grub.cfg
else
    linux /boot/vmlinuz-{release} root=LABEL={label} ro console=ttyS0 net.ifnames=0
    initrd /boot/initrd.img-{release}
    boot
fi
"""


def build(cache: Cache, image: Image, kernel: Kernel, packages: tuple[str, ...]) -> Path:
    """Return a disk with the root of ``image`` that boots ``kernel``; made once, then cached.

    :param packages: those that ``image`` was made with; :data:`PACKAGES` among them
    """
    config = FIRST_CONFIG.format(release=kernel.release, label=ROOT_LABEL)
    recipe = userland.Recipe.of(packages)

    def make(target: Path) -> None:
        boot, core = embed(userland.build(cache, recipe), config, target.with_suffix(".work"))
        assemble(boot, core, image.disk, target)

    key = digest(str(image.directory), config, *MODULES, SCRIPT.read_text(), Path(__file__).read_text())
    return cache.entry("bootable", f"{key}.raw", make)


def embed(base: Path, config: str, work: Path) -> tuple[bytes, bytes]:
    """Return GRUB's boot sector and its core image, made with the programs of a userland."""
    work.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{work.name}-", dir=work.parent) as directory:
        os.chmod(directory, 0o755)
        first = Path(directory, "first.cfg")
        first.write_text(config)
        run([*as_root(), "sh", SCRIPT, base, directory, first, *MODULES], timeout=BUILD_TIMEOUT_SECONDS)
        return Path(directory, "boot.img").read_bytes(), Path(directory, "core.img").read_bytes()


def assemble(boot: bytes, core: bytes, root: Path, target: Path) -> None:
    """Write the disk: boot sector with one partition, core image, and the root's file system, holes left out."""
    size = root.stat().st_size
    if SECTOR + len(core) > GAP_BYTES:
        raise ValueError(f"GRUB's core image has {len(core)} bytes: too many for the gap")
    first, count = GAP_BYTES // SECTOR, size // SECTOR
    entry = struct.pack(
        "<BBBBBBBBII", 0x80, 0xFE, 0xFF, 0xFF, LINUX_PARTITION, 0xFE, 0xFF, 0xFF, first, count
    )
    with target.open("wb") as disk, root.open("rb") as source:
        disk.write(boot[:CODE_BYTES].ljust(CODE_BYTES + 6, b"\0") + entry + bytes(48) + b"\x55\xaa" + core)
        disk.truncate(GAP_BYTES + size)
        place = 0
        while place < size:
            try:
                place = os.lseek(source.fileno(), place, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                break
            end = os.lseek(source.fileno(), place, os.SEEK_HOLE)
            source.seek(place)
            disk.seek(GAP_BYTES + place)
            while place < end:
                piece = source.read(min(16 << 20, end - place))
                disk.write(piece)
                place += len(piece)
