# SPDX-License-Identifier: MIT
"""A host on which a kernel is installed that can be entered; each test breaks one thing."""

import gzip
import json
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from builders.host import Machine
from builders.kernel import RELEASE, bzimage, vmlinux
from builders.vdso import VdsoBuilder
from upgrade.check import catalog, runner
from upgrade.check.model import Finding, Status
from upgrade.check.situation import Situation
from upgrade.check.target.needs import MODULES, NEEDS
from upgrade.config import Config
from upgrade.kexec.initrd import Entry, archive
from upgrade.request import Request

REDIS = "/workload/redis"
PID = 500
IOMEM = "100000000-10fffffff : Persistent Memory (legacy)\n140000000-17fffffff : Persistent Memory (legacy)"
OPTIONS = {
    **{option: "y" for need in NEEDS for option in need.options},
    **dict.fromkeys(MODULES, "m"),
    "EXT4_FS": "y",
    "SECURITY_APPARMOR": "y",
    "SECURITY_SELINUX": "y",
    "LSM": '"landlock,lockdown,yama,apparmor,selinux,bpf"',
}
DEP = {
    "kernel/drivers/net/virtio_net.ko.xz": ["kernel/net/core/failover.ko.xz"],
    "kernel/net/core/failover.ko.xz": [],
    "kernel/drivers/block/virtio_blk.ko.xz": [],
    "kernel/fs/overlayfs/overlay.ko.xz": [],
    **{f"kernel/needed/{name.replace('_', '-')}.ko.xz": [] for name in MODULES.values() if name != "ext4"},
}
ALIASES = (
    "alias virtio:d00000001v* virtio_net\nalias virtio:d00000002v* virtio_blk\nalias fs-overlay overlay\n"
)
INITRD = (
    "init",
    "usr/bin/sh",
    "usr/bin/mount",
    f"usr/lib/modules/{RELEASE}/kernel/drivers/block/virtio_blk.ko.xz",
)


class Target:
    """The host, and the kernel :data:`RELEASE` in its ``/boot``."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.options = dict(OPTIONS)
        self.dep = {name: list(needs) for name, needs in DEP.items()}
        self.release = RELEASE
        """What the image calls itself."""
        self.extra = b""
        """What the kernel holds besides."""
        self.boot = machine.root / "boot"
        self.tree = machine.root / "usr/lib/modules" / RELEASE
        self.kernel = self.boot / f"vmlinuz-{RELEASE}"
        self.initrd = self.boot / f"initrd.img-{RELEASE}"
        self.boot.mkdir(parents=True)
        self.image()
        self.config()
        self.modules()
        self.archive(INITRD)
        self._running()
        self.container()

    def image(self, kernel: bytes | None = None) -> None:
        """Write the kernel."""
        payload = gzip.compress((kernel or vmlinux([VdsoBuilder().build()])) + self.extra, 1)
        self.kernel.write_bytes(bzimage(payload, release=f"{self.release} (builder) #1 SMP"))

    def config(self, *without: str, unlisted: Iterable[str] = (), **values: str) -> None:
        """Write the configuration: options that are not set, that are not even listed, that are something else."""
        options = {**self.options, **values}
        lines = [f"CONFIG_{k}={v}" for k, v in options.items() if k not in (*without, *unlisted)]
        lines += [f"# CONFIG_{name} is not set" for name in without]
        self.machine.file(f"/boot/config-{RELEASE}", "\n".join(lines))

    def modules(self, *without: str, aliases: str = ALIASES) -> None:
        """Install the modules but some, as depmod does."""
        shutil.rmtree(self.tree, ignore_errors=True)
        kept = {f: n for f, n in self.dep.items() if Path(f).name.partition(".")[0] not in without}
        base = f"/usr/lib/modules/{RELEASE}"
        for file in kept:
            self.machine.file(f"{base}/{file}", "module")
        self.machine.file(
            f"{base}/modules.dep", "\n".join(f"{f}: {' '.join(n)}".strip() for f, n in kept.items())
        )
        self.machine.file(f"{base}/modules.alias", aliases)
        self.machine.file(
            f"{base}/modules.builtin", "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko"
        )
        (self.tree / "modules.builtin.modinfo").write_bytes(b"ext4.license=GPL\0ext4.alias=fs-ext4\0")

    def archive(self, names: Iterable[str]) -> None:
        """Write an initrd: microcode first, then files of these names, compressed."""
        early = archive(
            [Entry("kernel/x86/microcode/GenuineIntel.bin", stat.S_IFREG | 0o644, b"\xfd7zXZ\0" * 99)]
        )
        files = archive([Entry(name, stat.S_IFREG | 0o755, name.encode()) for name in names])
        self.initrd.write_bytes(early + bytes(-len(early) % 512) + gzip.compress(files))

    def device(self, path: str, driver: str, modalias: str = "", *, module: bool = True) -> Path:
        """Make a device with its driver; ``path`` is below ``/sys/devices``."""
        directory = self.machine.file(f"/sys/devices/{path}/modalias", modalias).parent
        drivers = self.machine.root / "sys/bus/drivers" / driver
        drivers.mkdir(parents=True, exist_ok=True)
        if module and not (drivers / "module").exists():
            loaded = self.machine.root / "sys/module" / driver.replace("-", "_")
            loaded.mkdir(parents=True, exist_ok=True)
            (drivers / "module").symlink_to(loaded)
        (directory / "driver").symlink_to(drivers)
        return directory

    def loaded(self, *others: str, without: str = "") -> None:
        """Set which modules are loaded."""
        names = {"virtio_net", "virtio_blk", "failover", *others} - {without}
        self.machine.file("/proc/modules", "\n".join(f"{name} 16384 0 - Live 0x0" for name in sorted(names)))

    def card(self, name: str, device: Path, state: str = "up") -> None:
        """Make a network card of a device."""
        directory = device / "net" / name
        directory.mkdir(parents=True)
        (directory / "operstate").write_text(state + "\n")
        (directory / "device").symlink_to(device)
        self._link(f"/sys/class/net/{name}", directory)

    def disk(self, name: str, device: Path, number: str, slaves: Iterable[str] = ()) -> Path:
        """Make a block device of a device."""
        directory = device / "block" / name
        directory.mkdir(parents=True)
        for slave in slaves:
            self._link(f"{directory.relative_to(self.machine.root)}/slaves/{slave}", directory)
        self._link(f"/sys/class/block/{name}", directory)
        self._link(f"/sys/dev/block/{number}", directory)
        return directory

    def mounts(self, *lines: str, pid: int | str = "self") -> None:
        """Set what is mounted: ``major:minor where kind source``."""
        found = []
        for line in lines:
            number, where, kind, source = line.split()
            found.append(f"30 1 {number} / {where} rw,relatime shared:1 - {kind} {source} rw")
        self.machine.file(f"/proc/{pid}/mountinfo", "\n".join(found))

    def container(self, name: str = REDIS, pid: int = PID, **process: Any) -> None:
        """Make a container of one task."""
        self.machine.cgroup(name, [pid])
        self.machine.process(pid, **process)
        self.machine.file(f"/sys/fs/cgroup{name}/cgroup.controllers", "cpuset cpu io memory pids")
        self.machine.file(f"/sys/fs/cgroup{name}/memory.stat", f"anon {10 << 20}")

    def runc(self, name: str, pid: int, **process: Any) -> None:
        """Make a container of runc's."""
        state = {
            "init_process_pid": pid,
            "cgroup_paths": {"": f"/sys/fs/cgroup/runc/{name}"},
            "config": {"rootfs": "/srv", "namespaces": [{"type": "NEWPID"}]},
        }
        self.machine.file(f"/run/runc/{name}/state.json", json.dumps(state))
        self.container(f"/runc/{name}", pid, **process)

    def situation(self, **options: Any) -> Situation:
        """Return what the checks look at."""
        request = Request(**{"kernel": str(self.kernel), "cgroups": (REDIS,), **options})
        return Situation(self.machine.host, request, Config())

    def found(self, identity: str, **options: Any) -> list[Finding]:
        """Return what one check says."""
        checks = runner.chosen(catalog.checks(), [identity], [])
        found = [result.finding for result in runner.run(checks, self.situation(**options))]
        for each in found:
            assert each.status is Status.PASS or each.reason, each
        return found

    def one(self, identity: str, status: Status, **options: Any) -> Finding:
        """Return the only finding of a check, which has this status."""
        (found,) = self.found(identity, **options)
        assert found.status is status, found
        assert found.remedy or status not in (Status.WARN, Status.FAIL), found
        return found

    def passes(self, identity: str, **options: Any) -> None:
        """Find nothing wrong."""
        found = self.found(identity, **options)
        assert found, identity
        assert {each.status for each in found} == {Status.PASS}, found

    def _running(self) -> None:
        machine = self.machine
        machine.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 memmap=256M!4G memmap=1G!5G")
        machine.file("/proc/iomem", IOMEM)
        machine.file("/proc/meminfo", f"MemTotal: {8 << 20} kB\nMemAvailable: {6 << 20} kB")
        self.loaded()
        machine.file("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids")
        machine.file("/sys/kernel/security/lsm", "lockdown,capability,landlock,yama,apparmor,bpf")
        machine.file("/proc/sys/kernel/ns_last_pid", "700")
        machine.file("/sys/devices/system/memory/block_size_bytes", f"{128 << 20:x}")
        (machine.root / "proc/self/map_files").mkdir()
        for name in ("maps", "mem"):
            os.symlink(f"/proc/self/{name}", machine.root / "proc/self" / name)
        self.device("pci0/0000:00:03.0", "virtio-pci", "pci:v00001AF4d00001000")
        self.card("eth0", self.device("pci0/0000:00:03.0/virtio0", "virtio_net", "virtio:d00000001v00001AF4"))
        self.device("pci0/0000:00:04.0", "virtio-pci", "pci:v00001AF4d00001001")
        self.disk(
            "vda",
            self.device("pci0/0000:00:04.0/virtio1", "virtio_blk", "virtio:d00000002v00001AF4"),
            "254:0",
        )
        self.mounts("254:0 / ext4 /dev/vda", "0:21 /proc proc proc", "0:30 /run tmpfs tmpfs")

    def _link(self, path: str, target: Path) -> None:
        link = self.machine.root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
