#!/bin/sh
# SPDX-License-Identifier: MIT
# usage: grub.sh USERLAND.tar WORK-DIRECTORY CONFIG MODULE...
#
# Make WORK-DIRECTORY/core.img and WORK-DIRECTORY/boot.img with the grub-mkimage of a userland. Runs as root, or as root
# of a user namespace.
set -eu

userland=$1 work=$2 config=$3
shift 3
tree=$work/tree
modules=/usr/lib/grub/i386-pc
mkdir "$tree"
tar -xf "$userland" -C "$tree" --numeric-owner ./usr ./bin ./lib ./lib64
# What is built in directly goes to a parser that knows no "if": it only starts the one that does.
tar -cf "$tree/memdisk.tar" -C "${config%/*}" --transform='s,.*,first.cfg,' "${config##*/}"
printf '%s\n' 'set root=(hd0,msdos1)' 'set prefix=(hd0,msdos1)/usr/lib/grub' 'normal (memdisk)/first.cfg' \
    >"$tree/builtin.cfg"
chroot "$tree" /usr/bin/grub-mkimage -O i386-pc -d "$modules" -p '(hd0,msdos1)/usr/lib/grub' -c /builtin.cfg \
    -m /memdisk.tar -o /core.img "$@"
cp "$tree$modules/boot.img" "$tree/core.img" "$work/"
rm -rf "$tree"
