# SPDX-License-Identifier: MIT
"""What has to be there again before anything can be restored: the root file system and the state directory."""

import os
from collections.abc import Iterator

from upgrade import paths
from upgrade.check import blocks
from upgrade.check.blocks import Layer
from upgrade.check.devices import crypt
from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.host import Host
from upgrade.kexec.filesystems import Mount

_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.glusterfs", "lustre", "gfs2", "ocfs2")
_MEMORY = ("tmpfs", "ramfs", "rootfs")


def root(situation: Situation) -> Iterator[Finding]:
    """Look at everything below both."""
    host, seen = situation.host, set()
    for path in ("/", os.fspath(paths.STATE)):
        mount = blocks.mount_of(host, path)
        if mount is None or mount.where in seen:
            continue
        seen.add(mount.where)
        below = blocks.layers(host, mount)
        found = [
            *_file_system(situation, mount),
            *(each for layer in below for each in _layer(host, mount, layer)),
        ]
        yield from found or [passed(mount.where, _chain(mount, below), blocks.MOUNTS)]


def _chain(mount: Mount, below: list[Layer]) -> str:
    kinds = [f"{each.kind} {each.name}" for each in below]
    return ", on ".join([mount.kind, *kinds]) + ("" if kinds else f" ({mount.source})")


def _file_system(situation: Situation, mount: Mount) -> Iterator[Finding]:
    if mount.kind in _REMOTE:
        yield _far(mount, mount.kind, blocks.MOUNTS)
    elif mount.kind in _MEMORY:
        yield warned(
            mount.where,
            f"is a {mount.kind}",
            source=blocks.MOUNTS,
            reason="it is empty in the new kernel: what the upgrade writes there beside the memory range (the plan, "
            "reports) is lost",
            remedy=f"mount a disk at {paths.STATE}",
        )
    elif mount.kind == "zfs":
        yield from _zfs(situation, mount)


def _layer(host: Host, mount: Mount, layer: Layer) -> Iterator[Finding]:
    if layer.kind == "crypt":
        yield from _encrypted(host, mount, layer)
    elif layer.kind == "remote":
        yield _far(mount, f"{layer.name}, {layer.detail}", f"/sys/class/block/{layer.name}")
    elif layer.kind == "memory":
        yield warned(
            mount.where,
            f"lies on {layer.name}, which is memory",
            source=f"/sys/class/block/{layer.name}",
            reason="a disk in memory does not outlive this kernel, unless its range is on both command lines",
            remedy="move it to a disk, or see that the new kernel has the same memmap= range",
        )


def _far(mount: Mount, what: str, source: str) -> Finding:
    return warned(
        mount.where,
        f"lies on {what}: reached over a network",
        source=source,
        reason="the new kernel's initrd has to bring the network up and connect before anything can be restored: the "
        "containers stand still for so long",
        remedy="see that an ordinary boot does that from the initrd alone, and how long it takes",
    )


def _zfs(situation: Situation, mount: Mount) -> Iterator[Finding]:
    try:
        release = situation.target.release
    except Unknown:
        yield passed(mount.where, f"zfs ({mount.source})", blocks.MOUNTS)
        return
    modules = f"/lib/modules/{release}/modules.dep"
    text = situation.host.read_or(modules, "")
    if text and "/zfs.ko" not in text:
        yield failed(
            mount.where,
            f"is zfs, and {release} has no module for it",
            source=modules,
            reason="the new kernel cannot mount it",
            remedy=f"dkms autoinstall -k {release}; update-initramfs -u -k {release}",
        )


def _encrypted(host: Host, mount: Mount, layer: Layer) -> Iterator[Finding]:
    found = crypt.opening(host, layer)
    name = layer.detail or layer.name
    if found.asks:
        yield failed(
            f"{mount.where} ({name})",
            "is encrypted, and somebody has to type the passphrase at boot",
            source=crypt.CRYPTTAB,
            reason="the new kernel waits for it with the containers' memory in its hands, and they stand still until "
            "somebody types it",
            remedy="put a key file into the initrd, or bind the disk to the TPM (systemd-cryptenroll); if you will "
            "type it at the console: --skip devices.root",
        )
    elif not found.key:
        yield warned(
            f"{mount.where} ({name})",
            f"is encrypted, and opened with {found.helper}"
            if found.helper
            else "is encrypted; how it is opened at boot is not in crypttab",
            source=crypt.CRYPTTAB,
            reason="if that does not work in the new kernel, it asks for a passphrase and the containers stand still; "
            "a TPM's registers are not reset by kexec, so a policy that binds them to a phase of the boot refuses",
            remedy="try kexec once without containers (systemctl kexec), or put a key file into the initrd",
        )
