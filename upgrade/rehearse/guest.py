# SPDX-License-Identifier: MIT
"""How a guest is set up: the files that make a plain Debian a machine for rehearsals."""

ADDRESS = "10.77.0.2"
OUTSIDE_ADDRESS = "10.77.0.1"
PREFIX_LENGTH = 24
MAC = "52:54:00:77:00:02"
HOSTNAME = "rehearsal"
ROOT_LABEL = "root"
SEED_LABEL = "seed"
SEED_DIRECTORY = "/run/seed"
PROGRAM = "/usr/local/sbin/seamless-upgrade"  # where `scripts/install` puts it

# A first boot would run presets and settle the machine's identity: that is done when the image is made.
MACHINE_ID = "5ea3135500000000000000000000c0de"

FILES = {
    "/etc/hostname": f"{HOSTNAME}\n",
    "/etc/hosts": f"127.0.0.1 localhost\n{ADDRESS} {HOSTNAME}\n",
    "/etc/machine-id": f"{MACHINE_ID}\n",
    # noinit_itable: the kernel shall not write inode tables while something is measured.
    "/etc/fstab": f"LABEL={ROOT_LABEL} / ext4 defaults,noinit_itable 0 1\n",
    "/etc/systemd/network/10-rehearsal.network": f"""\
[Match]
MACAddress={MAC}

[Network]
Address={ADDRESS}/{PREFIX_LENGTH}
Gateway={OUTSIDE_ADDRESS}
LinkLocalAddressing=no
IPv6AcceptRA=no
""",
    # Only workloads start services: whatever a package enabled is disabled, timers included.
    "/etc/systemd/system-preset/00-rehearsal.preset": """\
enable systemd-networkd.service
enable systemd-pstore.service
disable *
""",
    "/etc/systemd/journald.conf.d/rehearsal.conf": "[Journal]\nStorage=persistent\n",
    # `systemctl isolate` must not take away the way into the machine.
    "/etc/systemd/system/qemu-guest-agent.service.d/rehearsal.conf": "[Unit]\nIgnoreOnIsolate=yes\n",
    # The disk is all that is needed to get to the root. MODULES=most would triple the time to /init under
    # emulation, and MODULES=dep looks at the machine it runs on, which is not the guest. ext4 and virtio_pci
    # are part of Debian's cloud kernels, modules elsewhere.
    "/etc/initramfs-tools/conf.d/rehearsal": "MODULES=list\n",
    "/etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    # The login prompt on the serial console asks for no password: it is a throw-away machine.
    "/etc/systemd/system/serial-getty@ttyS0.service.d/rehearsal.conf": """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
""",
}
