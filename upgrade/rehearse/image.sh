#!/bin/sh
# SPDX-License-Identifier: MIT
# usage: image.sh USERLAND.tar FILES-DIRECTORY TARGET-DIRECTORY SIZE LABEL KERNEL-DIRECTORY...
#
# Make TARGET-DIRECTORY/root.ext4 and TARGET-DIRECTORY/initrd.img-RELEASE. A KERNEL-DIRECTORY has the name of
# the release and holds vmlinuz, modules/ and perhaps config. Runs as root, or as root of a user namespace, in
# a mount namespace of its own: what it mounts disappears with it.
set -eu

userland=$1 files=$2 target=$3 size=$4 label=$5
shift 5
tree=$target/tree
mkdir -p "$tree"

tar -xf "$userland" -C "$tree" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'
cp -rT --no-preserve=ownership "$files" "$tree"
for kernel in "$@"; do
    release=$(basename "$kernel")
    cp -L "$kernel/vmlinuz" "$tree/boot/vmlinuz-$release"
    [ ! -e "$kernel/config" ] || cp -L "$kernel/config" "$tree/boot/config-$release"
    mkdir -p "$tree/usr/lib/modules"
    cp -rT --no-preserve=ownership "$kernel/modules/" "$tree/usr/lib/modules/$release"
done

for node in null zero urandom; do
    : >"$tree/dev/$node"
    mount --bind "/dev/$node" "$tree/dev/$node"
done
mount --rbind /proc "$tree/proc"

inside() { env -i PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 HOME=/root TMPDIR=/tmp chroot "$tree" "$@"; }
inside systemctl preset-all --preset-mode=full 2>&1
inside mkdir -p /var/log/journal
for kernel in "$@"; do
    release=$(basename "$kernel")
    inside depmod "$release"
    inside mkinitramfs -o "/boot/initrd.img-$release" "$release"
    cp "$tree/boot/initrd.img-$release" "$target/"
done

# Nothing is new to this system when it boots: the services that look for updates need not run.
inside touch /etc/.updated /var/.updated

umount -l "$tree/proc" "$tree/dev/null" "$tree/dev/zero" "$tree/dev/urandom"
rm -f "$tree/dev/null" "$tree/dev/zero" "$tree/dev/urandom"
mke2fs -q -t ext4 -L "$label" -d "$tree" "$target/root.ext4" "$size"
rm -rf "$tree"
