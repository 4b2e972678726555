# SPDX-License-Identifier: MIT
"""The kernel's side of a namespace, its dax device and its memory blocks: files that follow what is written to them."""

import shutil
from pathlib import Path

from builders.programs import Programs
from memfs.ranges import Range

BLOCK = 128 << 20


class Nd:
    """One namespace of the ``nd_e820`` driver, and the ``dax`` bus behind it."""

    def __init__(self, root: Path, span: Range, *, info: str = "", policy: str = "online") -> None:
        self.root = root
        self.span = span
        self.nd = root / "sys/bus/nd"
        self.dax = root / "sys/bus/dax"
        self.memory = root / "sys/devices/system/memory"
        self.space = self.nd / "devices/namespace0.0"
        self.refused: dict[str, OSError] = {}
        """What the kernel says to a write, by the end of the attribute's path."""
        self.info = self.file(root / "info", info)
        """What the info block at 4 KiB says."""
        self.file(self.space / "resource", f"{span.start_bytes:#x}")
        self.file(self.space / "size", str(span.size_bytes))
        self.file(self.space / "force_raw", "0")
        self.file(self.space / "holder", "")
        for name in ("nd_pmem", "dax_pmem"):
            for attribute in ("bind", "unbind"):
                self.file(self.nd / "drivers" / name / attribute, "")
        for name in ("device_dax", "kmem"):
            for attribute in ("bind", "unbind", "new_id"):
                self.file(self.dax / "drivers" / name / attribute, "")
        self.file(self.memory / "block_size_bytes", f"{BLOCK:x}")
        self.file(self.memory / "auto_online_blocks", policy)
        (root / "dev").mkdir()

    def file(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        return path

    def write(self, attribute: Path, text: str) -> None:
        """Do as ``memfs.sysfs.write``, and then as the kernel."""
        for end, error in self.refused.items():
            if str(attribute).endswith(end):
                raise error
        if not attribute.exists():
            raise FileNotFoundError(attribute)
        where = attribute.relative_to(self.root / "sys").as_posix()
        if where.endswith("force_raw") and (self.space / "driver").is_symlink():
            raise OSError(16, "Device or resource busy")
        raw = (self.space / "force_raw").read_text() == "1\n"
        if where == "bus/nd/drivers/nd_pmem/bind" and not raw and self.info.read_text() == "dax\n":
            self.hold()
            raise OSError(6, "No such device or address")  # the dax device has it now
        self.file(attribute, text.strip())
        if where == "bus/nd/drivers/nd_pmem/bind":
            self.bind()
        elif where == "bus/nd/drivers/nd_pmem/unbind":
            (self.space / "driver").unlink()
            shutil.rmtree(self.space / "block")
        elif where == "bus/nd/drivers/dax_pmem/unbind":
            (self.nd / "devices/dax0.0/driver").unlink()
            shutil.rmtree(self.nd / "devices/dax0.0/dax0.0")
            (self.dax / "drivers/device_dax/dax0.0").unlink(missing_ok=True)
        elif where == "bus/nd/devices/dax0.0/namespace":
            self.file(self.space / "holder", "")
        elif where == "bus/dax/drivers/device_dax/unbind":
            (self.dax / "drivers/device_dax/dax0.0").unlink()
        elif where == "bus/dax/drivers/kmem/new_id":
            self.add_memory()
        elif where.endswith("/state"):
            self.file(attribute, "online")

    def bind(self) -> None:
        """Make it a block device."""
        (self.space / "driver").symlink_to(self.nd / "drivers/nd_pmem")
        (self.space / "block/pmem0").mkdir(parents=True)
        (self.root / "dev/pmem0").touch()

    def hold(self) -> None:
        """Make it a dax device."""
        self.file(self.space / "holder", "dax0.0")
        device = self.nd / "devices/dax0.0"
        (device / "dax0.0").mkdir(parents=True)
        self.file(device / "namespace", "namespace0.0")
        (device / "driver").symlink_to(self.nd / "drivers/dax_pmem")
        (self.dax / "devices/dax0.0").mkdir(parents=True, exist_ok=True)
        (self.dax / "drivers/device_dax/dax0.0").symlink_to(device)

    def add_memory(self) -> None:
        """Add the memory behind the first 2 MiB in whole blocks, online at once if that is the policy."""
        (self.dax / "drivers/kmem/dax0.0").symlink_to(self.nd / "devices/dax0.0")
        state = "offline" if (self.memory / "auto_online_blocks").read_text() == "offline\n" else "online"
        first = -(-(self.span.start_bytes + (2 << 20)) // BLOCK)
        for number in range(first, self.span.end_bytes // BLOCK):
            self.file(self.memory / f"memory{number}/state", state)
            self.file(self.memory / f"memory{number}/by", "kernel" if state == "online" else "us")

    def ndctl(self, programs: Programs) -> None:
        """Make a program that does to the files what ``hold`` does."""
        nd, dax = self.nd, self.dax
        programs.add(
            "ndctl",
            f"""set -e
            rm -rf {self.space}/driver {self.space}/block
            echo dax >{self.info}; echo dax0.0 >{self.space}/holder
            mkdir -p {nd}/devices/dax0.0/dax0.0 {dax}/devices/dax0.0
            echo namespace0.0 >{nd}/devices/dax0.0/namespace
            ln -s {nd}/drivers/dax_pmem {nd}/devices/dax0.0/driver
            ln -s {nd}/devices/dax0.0 {dax}/drivers/device_dax/dax0.0
            echo '{{"daxregion": {{"devices": [{{"chardev": "dax0.0"}}]}}}}'""",
        )

    def states(self) -> dict[int, str]:
        """Return the states of all memory blocks."""
        found = {int(p.parent.name.removeprefix("memory")): p for p in self.memory.glob("memory*/state")}
        return {number: path.read_text().strip() for number, path in sorted(found.items())}
