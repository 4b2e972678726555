# SPDX-License-Identifier: MIT
"""QEMU's command line."""

from dataclasses import dataclass
from pathlib import Path

from upgrade.rehearse.accelerator import CPU, EMULATION, QEMU
from upgrade.rehearse.guest import ROOT_LABEL
from upgrade.rehearse.network import Network
from upgrade.rehearse.spec import MachineSpec

# Devices that nobody uses would only cost time to look for, in both kernels.
MACHINE = "q35,sata=off,smbus=off,i8042=off,vmport=off"


@dataclass(frozen=True, slots=True)
class Devices:
    """The files and sockets of one machine."""

    directory: Path
    sockets: Path
    with_seed: bool = False

    @property
    def disk(self) -> Path:
        """The overlay that takes what the guest writes."""
        return self.directory / "disk.qcow2"

    @property
    def seed(self) -> Path:
        """The read-only disk with what is under test."""
        return self.directory / "seed.ext4"

    @property
    def console(self) -> Path:
        """What the guest writes to its serial port."""
        return self.directory / "console.log"

    @property
    def messages(self) -> Path:
        """What QEMU itself says."""
        return self.directory / "qemu.log"

    @property
    def pidfile(self) -> Path:
        """QEMU's process id while it runs."""
        return self.directory / "qemu.pid"

    @property
    def agent(self) -> Path:
        """The socket of the guest agent."""
        return self.sockets / "agent"

    @property
    def monitor(self) -> Path:
        """The socket for orders to QEMU."""
        return self.sockets / "qmp"

    @property
    def terminal(self) -> Path:
        """The socket for people who want to log in on the serial port."""
        return self.sockets / "console"


def command_line(spec: MachineSpec, devices: Devices, network: Network, accel: str) -> list[str]:
    """Return the command that runs a machine."""
    return [
        QEMU,
        *processor(spec, accel),
        *(
            "-machine",
            f"{MACHINE},max-ram-below-4g={spec.layout.low_mib}M",
            "-m",
            f"{spec.layout.total_mib}M",
        ),
        # kexec is no reset of the machine: one QEMU spans the upgrade, and a real reboot ends it.
        *("-nodefaults", "-display", "none", "-no-reboot", "-pidfile", str(devices.pidfile)),
        *kernel(spec),
        *disks(devices),
        *channels(devices),
        *network.devices,
    ]


def processor(spec: MachineSpec, accel: str) -> list[str]:
    """Return the options about time and processors."""
    if spec.repeatable:
        # Instructions are counted, two nanoseconds each; idle time is skipped.
        return ["-accel", EMULATION.split(",")[0], "-icount", "shift=1,sleep=off", "-cpu", CPU, "-smp", "1"]
    return ["-accel", accel, "-cpu", CPU, "-smp", str(spec.cpus)]


def kernel(spec: MachineSpec) -> list[str]:
    """Return the options about the first kernel; none if a boot loader on the disk brings it."""
    if spec.disk is not None:
        return []
    initrd = spec.image.initrd(spec.kernel.release)
    return ["-kernel", str(spec.kernel.vmlinuz), "-initrd", str(initrd), "-append", kernel_arguments(spec)]


def kernel_arguments(spec: MachineSpec) -> str:
    """Return the command line of the first kernel."""
    arguments = [f"root=LABEL={ROOT_LABEL}", "ro", "console=ttyS0", "net.ifnames=0", *spec.layout.arguments]
    if not spec.keep:
        # nobody logs in there, and the shell of a terminal without anybody ends and begins all the time
        arguments.append("systemd.mask=serial-getty@ttyS0.service")
    return " ".join([*arguments, *spec.append.split()])


def disks(devices: Devices) -> list[str]:
    """Return the options about disks. Nothing has to survive a crash of the host."""
    options = ["-drive", f"file={devices.disk},format=qcow2,if=virtio,cache=unsafe"]
    if devices.with_seed:
        options += ["-drive", f"file={devices.seed},format=raw,if=virtio,readonly=on"]
    return options


def channels(devices: Devices) -> list[str]:
    """Return the options about the ways in: serial console, guest agent, monitor."""
    server = "server=on,wait=off"
    return [
        *("-chardev", f"socket,id=console,path={devices.terminal},{server},logfile={devices.console}"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=agent,path={devices.agent},{server}"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-qmp", f"unix:{devices.monitor},{server}"),
    ]
